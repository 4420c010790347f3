import { type Device, MoeError, moeOptions, type ProcessGroup, utils } from '../lib/index.js'
import { BytePairTokenizer } from './byte-pair.js'
import { LanguageModel } from './model.js'
import { kebabCase, type LanguageModelShape, languageModelOptions, readModelSizes } from './options.js'
import type { BytePair } from './pair-merges.js'
import { describeTokenizer, type ModelDescription, RunFolder } from './run-folder.js'
import { CharacterTokenizer, type Tokenizer } from './tokenizer.js'

interface Described {
  sizes: LanguageModelShape
  tokenizer: Tokenizer
  id?: string
}

/** The model that run.json describes. Errors: FILE_FORMAT, FILE_SYSTEM. */
function describedModel(op: string, folder: RunFolder): Described {
  const description = folder.read()
  const wrong = (why: string): never =>
    utils.fail(
      'FILE_FORMAT',
      op,
      `${folder.description} does not describe a run of this version of st-moe train: ${why}`,
    )
  const checkObject = (name: string, value: unknown): void => {
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      wrong(`${name} must be an object, got ${utils.show(value)}`)
  }
  checkObject('it', description)
  const { id, options, text } = description as Partial<ModelDescription>
  checkObject('options', options)
  checkObject('text', text)
  const given = Object.keys(languageModelOptions).map((name) => [
    name,
    (options as Record<string, unknown>)[kebabCase(name)],
  ])
  const { vocabulary, merges } = text as { vocabulary?: unknown; merges?: unknown }
  if (merges === undefined && typeof vocabulary !== 'string')
    wrong(`text.vocabulary must be a string, got ${utils.show(vocabulary)}`)
  const accepted = <T>(what: string, read: () => T): T => {
    try {
      return read()
    } catch (error) {
      if (!(error instanceof MoeError && error.code === 'OPTION')) throw error
      return wrong(`${what}: ${error.message.slice(`[${error.op}] `.length)}`)
    }
  }
  const known = Object.fromEntries(given.map(([name, value]) => [name, value ?? undefined]))
  return {
    id,
    sizes: accepted('options', () => readModelSizes(op, known)),
    tokenizer: accepted('text', () =>
      merges === undefined
        ? new CharacterTokenizer([...(vocabulary as string)])
        : new BytePairTokenizer(merges as BytePair[]),
    ),
  }
}

/** Options of {@link loadLanguageModel}. */
export interface LoadLanguageModelOptions {
  /** Default: that of {@link setDefaultDevice}, at first 'cpu'. */
  device?: Device
  /** Its ranks share out the experts, and all call it. By default one process has all. */
  processGroup?: ProcessGroup
}

const readLoadOptions = utils.reader({ device: moeOptions.device, processGroup: moeOptions.processGroup })

/**
 * The model of a run folder of `st-moe train`, or of {@link saveLanguageModel}, in evaluation mode. The folder alone
 * rebuilds it, without the text, and may be untrusted.
 *
 * Errors: FILE_SYSTEM, FILE_FORMAT, STATE_DICT if checkpoint and description are of different models or saves, DEVICE,
 * BACKEND_UNAVAILABLE, OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * const tokenizer = CharacterTokenizer.of('to be or not to be')
 * await saveLanguageModel('model', new LanguageModel({ tokenizer, context: 16, dim: 16, layers: 1 }))
 * const model = await loadLanguageModel('model')
 * console.log(model.sizes.context, model.tokenizer.size) // → 16 7
 * ```
 */
export async function loadLanguageModel(folder: string, options?: LoadLanguageModelOptions): Promise<LanguageModel> {
  const op = 'loadLanguageModel'
  const run = new RunFolder(folder, op)
  const { device, processGroup } = readLoadOptions(op, options)
  const { sizes, tokenizer, id } = describedModel(op, run)
  run.checkHolds(sizes, tokenizer.size, id)
  const model = new LanguageModel({ ...sizes, tokenizer, processGroup })
  try {
    await run.restore({ model }, id)
    model.to(device)
  } catch (error) {
    model.dispose()
    throw error
  }
  return model.eval()
}

/** Options of {@link saveLanguageModel}. */
export interface SaveLanguageModelOptions {
  /** Replaces what the folder holds, once the new files are on disk. Default false. */
  overwrite?: boolean
  /** All its ranks call it, and save together; needed for a model whose experts they share out. */
  group?: ProcessGroup
}

const readSaveOptions = utils.reader({ overwrite: utils.boolean({ default: false }), group: moeOptions.processGroup })

/**
 * Writes a model to a folder, which it creates, for {@link loadLanguageModel} and `st-moe generate`: its options and
 * tokenizer to run.json, its weights to checkpoint.safetensors, or with a `group` to a file of each rank.
 *
 * Errors: OPTION if the folder holds a model and `overwrite` is not true; FILE_SYSTEM; those of collectives.
 *
 * @example
 * ```ts
 * const model = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), context: 8, dim: 16, layers: 1 })
 * await saveLanguageModel('letters', model)
 * await saveLanguageModel('letters', model, { overwrite: true })
 * ```
 */
export async function saveLanguageModel(
  folder: string,
  model: LanguageModel,
  options?: SaveLanguageModelOptions,
): Promise<void> {
  const op = 'saveLanguageModel'
  const run = new RunFolder(folder, op)
  const { overwrite, group } = readSaveOptions(op, options)
  if (!(model instanceof LanguageModel))
    utils.fail('OPTION', op, `model must be a LanguageModel, got ${utils.show(model)}`)
  const { tokenizer, sizes } = model
  const text = describeTokenizer(tokenizer)
  if (!text)
    utils.fail(
      'UNSUPPORTED',
      op,
      'only a model with a tokenizer of this package can be saved; saveSafetensors saves the weights of others',
    )
  if (!overwrite && run.holdsRun) utils.fail('OPTION', op, `${folder} contains a model: overwrite: true replaces it`)
  const named = Object.entries(sizes).map(([name, value]) => [kebabCase(name), value ?? null])
  const description: ModelDescription = { options: Object.fromEntries(named), text }
  utils.within(op, () => utils.makeFolder(folder))
  await run.save({ id: RunFolder.idOf(description), ...description }, { model, step: 0, group })
}
