import { createHash } from 'node:crypto'
import { lstatSync } from 'node:fs'
import { join } from 'node:path'
import { writeTogether } from '../io/atomic.js'
import {
  type Checkpoint,
  type CheckpointProgress,
  type CheckpointTargets,
  encodeCheckpoint,
  readProgress,
  restoreCheckpoint,
} from '../io/checkpoint.js'
import { checkPath, described, runSync } from '../io/files.js'
import { readJson } from '../io/json.js'
import { makeFolder } from '../io/make-folder.js'
import { headerIn } from '../io/tensor-file.js'
import { checkOptions, fail } from '../runtime/check.js'
import { checkDevice, type Device, getDefaultDevice } from '../runtime/device.js'
import { MoeError, show } from '../runtime/errors.js'
import { type BytePair, BytePairTokenizer } from './byte-pair.js'
import { LanguageModel } from './model.js'
import { kebabCase, modelOptions } from './model-options.js'
import { readModelSizes, type Sizes } from './options.js'
import { sizesOf, weightBytes } from './sizes.js'
import { CharacterTokenizer, type Tokenizer } from './tokenizer.js'

/** What a run folder says of its model, in run.json; the weights are in checkpoint.safetensors. */
export interface ModelDescription {
  /** Also in the metadata of the checkpoint of the same save. Earlier versions have none. */
  id?: string
  /** The options of the model, in kebab case; a run has more. */
  options: Record<string, unknown>
  /** Characters, or pairs of bytes and of the tokens before. */
  text: { vocabulary: string } | { merges: readonly BytePair[] }
}

export const checkpointIn = (folder: string): string => join(folder, 'checkpoint.safetensors')
export const descriptionIn = (folder: string): string => join(folder, 'run.json')

const idKey = 'st-moe.run'

/** Tells a description from that of another model or run. */
export const idOf = (description: ModelDescription): string =>
  createHash('sha256').update(JSON.stringify(description)).digest('hex')

/** Rejects a checkpoint that was not saved with the description of this id. Errors: STATE_DICT. */
function checkId(op: string, folder: string, id: unknown, metadata: Readonly<Record<string, string>>): void {
  if (metadata[idKey] !== id)
    fail('STATE_DICT', op, `run.json and checkpoint.safetensors in ${folder} are of different saves`)
}

/** More than a vocabulary of every character takes. */
const maxBytes = 5e6

/** Of a run from before these options it is what they are by default. */
const laterOptions = new Set([
  'router',
  'secondPolicy',
  'scoreFunction',
  'dropless',
  'activation',
  'expertHiddenDim',
  'sharedExperts',
])

/** Whether a folder has one of the files of a run, or a link in its place. Errors: FILE_SYSTEM. */
export function holdsRun(op: string, folder: string): boolean {
  const isThere = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false }) !== undefined
  try {
    return isThere(checkpointIn(folder)) || isThere(descriptionIn(folder))
  } catch (error) {
    throw described(op, `cannot read ${folder}`, error)
  }
}

/** The JSON in run.json. Errors: FILE_FORMAT, FILE_SYSTEM. */
export function readDescription(op: string, folder: string): unknown {
  if (!holdsRun(op, folder)) fail('FILE_SYSTEM', op, `there is no run in ${folder}: st-moe train creates one`)
  return readJson(op, descriptionIn(folder), maxBytes)
}

/** Whether a folder holds a description and the checkpoint of the same save. */
export function holdsSave(op: string, folder: string): boolean {
  try {
    const { id } = readDescription(op, folder) as Partial<ModelDescription>
    checkId(op, folder, id, runSync(headerIn(op, checkpointIn(folder))).metadata)
    return true
  } catch {
    return false
  }
}

/** The model that run.json describes. Errors: FILE_FORMAT. */
function describedModel(op: string, folder: string): { sizes: Sizes; tokenizer: Tokenizer; id?: string } {
  const description = readDescription(op, folder)
  const wrong = (why: string): never =>
    fail('FILE_FORMAT', op, `${descriptionIn(folder)} does not describe a run of this version of st-moe train: ${why}`)
  const checkObject = (name: string, value: unknown): void => {
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      wrong(`${name} must be an object, got ${show(value)}`)
  }
  checkObject('it', description)
  const { id, options, text } = description as Partial<ModelDescription>
  checkObject('options', options)
  checkObject('text', text)
  const given = Object.keys(modelOptions).map((name) => [name, (options as Record<string, unknown>)[kebabCase(name)]])
  for (const [name, value] of given as [string, unknown][])
    if (value === undefined && !laterOptions.has(name)) wrong(`options.${kebabCase(name)} is missing`)
  const { vocabulary, merges } = text as { vocabulary?: unknown; merges?: unknown }
  if (merges === undefined && typeof vocabulary !== 'string')
    wrong(`text.vocabulary must be a string, got ${show(vocabulary)}`)
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

/**
 * Rejects a checkpoint of another save, and a model larger than its tensors, before it allocates memory. Their size is
 * that of the header, which must account for the whole file. Errors: STATE_DICT, FILE_FORMAT, FILE_SYSTEM.
 */
export function checkHolds(op: string, folder: string, sizes: Sizes, V: number, id: string | undefined): void {
  const [file, needed] = [checkpointIn(folder), weightBytes(sizes, V)]
  const { entries, metadata } = runSync(headerIn(op, file))
  checkId(op, folder, id, metadata)
  const size = entries.at(-1)?.end ?? 0
  if (needed <= size) return
  const shown = Object.entries(sizesOf(sizes)).map(([name, value]) => `${kebabCase(name)} ${value}`)
  const described = `the model of ${descriptionIn(folder)} (${shown.join(', ')})`
  fail('STATE_DICT', op, `${file} holds ${size} bytes of tensors, but ${described} has at least ${needed}`)
}

/**
 * Restores from the checkpoint of the save with this id, with a short error instead of a list of tensor names. After an
 * error the targets may have changed.
 */
export async function restore(
  op: string,
  folder: string,
  targets: CheckpointTargets,
  id: string | undefined,
): Promise<CheckpointProgress> {
  const restored = await restoreCheckpoint(checkpointIn(folder), targets).catch((error) => {
    if (!(error instanceof MoeError && error.code === 'STATE_DICT')) throw error
    const text = `${checkpointIn(folder)} does not contain the model of ${descriptionIn(folder)}`
    throw new MoeError('STATE_DICT', op, text, { cause: error })
  })
  checkId(op, folder, id, restored.metadata)
  return restored
}

/** The progress in the checkpoint of the save with this id. Errors: STATE_DICT, FILE_FORMAT, FILE_SYSTEM. */
export async function progressIn(op: string, folder: string, id: string | undefined): Promise<CheckpointProgress> {
  const progress = await readProgress(op, checkpointIn(folder))
  checkId(op, folder, id, progress.metadata)
  return progress
}

/** Options of {@link loadLanguageModel}. */
export interface LoadLanguageModelOptions {
  /** Default: that of {@link setDefaultDevice}, at first 'cpu'. */
  device?: Device
}

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
  checkPath(op, folder)
  const o = checkOptions<LoadLanguageModelOptions>(op, options, ['device'])
  const device = checkDevice(op, o.device ?? getDefaultDevice())
  const { sizes, tokenizer, id } = describedModel(op, folder)
  checkHolds(op, folder, sizes, tokenizer.size, id)
  const model = new LanguageModel({ ...sizes, tokenizer })
  try {
    await restore(op, folder, { model }, id)
    model.to(device)
  } catch (error) {
    model.dispose()
    throw error
  }
  return model.eval()
}

/** Null for a tokenizer that is not of this package. */
export function describeTokenizer(tokenizer: Tokenizer): ModelDescription['text'] | null {
  if (tokenizer instanceof CharacterTokenizer) return { vocabulary: tokenizer.vocabulary.join('') }
  return tokenizer instanceof BytePairTokenizer ? { merges: tokenizer.merges } : null
}

/** Writes run.json and the checkpoint that belongs to it. The earlier ones stay until both new ones are on disk. */
export async function saveRun(
  op: string,
  folder: string,
  description: ModelDescription,
  checkpoint: Checkpoint,
  indent = 0,
): Promise<void> {
  const { id } = description
  const json = JSON.stringify(description, null, indent)
  const files = [
    { path: descriptionIn(folder), parts: [Buffer.from(`${json}\n`)] },
    { path: checkpointIn(folder), parts: encodeCheckpoint(op, checkpoint, id === undefined ? {} : { [idKey]: id }) },
  ]
  await writeTogether(files, op)
}

/** Options of {@link saveLanguageModel}. */
export interface SaveLanguageModelOptions {
  /** Replaces what the folder holds, once the new files are on disk. Default false. */
  overwrite?: boolean
}

/**
 * Writes a model to a folder, which it creates, for {@link loadLanguageModel} and `st-moe generate`: its options and
 * tokenizer to run.json, its weights to checkpoint.safetensors.
 *
 * Errors: OPTION if the folder holds a model and `overwrite` is not true; FILE_SYSTEM.
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
  const path = checkPath(op, folder)
  const { overwrite } = checkOptions<SaveLanguageModelOptions>(op, options, ['overwrite'])
  if (!(model instanceof LanguageModel)) fail('OPTION', op, `model must be a LanguageModel, got ${show(model)}`)
  const { tokenizer, sizes } = model
  const text = describeTokenizer(tokenizer)
  if (!text)
    fail(
      'UNSUPPORTED',
      op,
      'only a model with a tokenizer of this package can be saved; saveSafetensors saves the weights of others',
    )
  if (overwrite !== true && holdsRun(op, path))
    fail('OPTION', op, `${path} contains a model: overwrite: true replaces it`)
  const named = Object.entries(sizes).map(([name, value]) => [kebabCase(name), value ?? null])
  const description: ModelDescription = { options: Object.fromEntries(named), text }
  try {
    makeFolder(path)
  } catch (error) {
    throw new MoeError('FILE_SYSTEM', op, `${path} cannot be written to: ${(error as Error).message}`, { cause: error })
  }
  await saveRun(op, path, { id: idOf(description), ...description }, { model, step: 0 })
}
