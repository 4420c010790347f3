import { createHash } from 'node:crypto'
import { lstatSync, statSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import {
  type Checkpoint,
  type CheckpointTargets,
  checkpointHeaderSync,
  checkpointProgress,
  type LoadedProgress,
  loadCheckpoint,
  MoeError,
  saveCheckpoint,
  utils,
} from '../lib/index.js'
import { BytePairTokenizer } from './byte-pair.js'
import { kebabCase, type LanguageModelShape } from './options.js'
import type { BytePair } from './pair-merges.js'
import { memoryOptions, weightBytes, weightCount, weightShapes } from './sizes.js'
import { CharacterTokenizer, type Tokenizer } from './tokenizer.js'

/** What run.json says of the model in a {@link RunFolder}; the weights are in checkpoint.safetensors. */
export interface ModelDescription {
  /** Also in the metadata of the checkpoint of the same save. Earlier versions have none. */
  id?: string
  /** The options of the model, in kebab case; a run has more. */
  options: Record<string, unknown>
  /** What the tokenizer is made of. */
  text: CharacterVocabulary | ByteVocabulary
}

/** What a {@link CharacterTokenizer} is made of. */
export interface CharacterVocabulary {
  /** Its characters. */
  vocabulary: string
}

/** What a {@link BytePairTokenizer} is made of. */
export interface ByteVocabulary {
  /** Pairs of bytes and of the tokens before. */
  merges: readonly BytePair[]
}

/**
 * What a {@link ModelDescription} says of a tokenizer, or null for one that is not of this package.
 *
 * @example
 * ```ts
 * console.log(describeTokenizer(CharacterTokenizer.of('abc'))) // → { vocabulary: 'abc' }
 * ```
 */
export function describeTokenizer(tokenizer: Tokenizer): ModelDescription['text'] | null {
  if (tokenizer instanceof CharacterTokenizer) return { vocabulary: tokenizer.vocabulary.join('') }
  return tokenizer instanceof BytePairTokenizer ? { merges: tokenizer.merges } : null
}

const idKey = 'st-moe.run'

/** Of the model's tensors in a checkpoint. */
const modelPrefix = 'model.'
const floats = new Set(['F32', 'F64', 'BF16', 'F16'])

/** More than a vocabulary of every character takes. */
const maxBytes = 5e6

/**
 * A folder with a model, or a whole training run: run.json describes it, checkpoint.safetensors, or a file of each rank, has
 * its weights and what else a run continues from. Both are replaced together, and a number in both tells whether they
 * belong to one save. The folder may be untrusted.
 *
 * @example
 * ```ts
 * const tokenizer = CharacterTokenizer.of('abc')
 * const model = new LanguageModel({ tokenizer, context: 8, dim: 16, layers: 1 })
 * await saveLanguageModel('letters', model)
 * const folder = new RunFolder('letters')
 * const { id } = folder.read() as ModelDescription
 * console.log(folder.holdsSave, (await folder.progress(id)).step) // → true 0
 * ```
 */
export class RunFolder {
  /** Its path. */
  readonly path: string
  /** The file of the description. */
  readonly description: string
  readonly #file: string
  readonly #op: string

  /** Touches no file. `op` is the operation that errors name. Errors: OPTION. */
  constructor(path: string, op = 'RunFolder') {
    this.path = utils.checkPath(op, path)
    this.#file = join(path, 'checkpoint.safetensors')
    this.description = join(path, 'run.json')
    this.#op = op
  }

  /** The id of a description: that of another model or run is another. */
  static idOf(description: ModelDescription): string {
    return createHash('sha256').update(JSON.stringify(description)).digest('hex')
  }

  /** The paths that a save replaces. */
  get replaced(): readonly string[] {
    return [this.#file, utils.rankIndexIn(this.path), this.description]
  }

  /**
   * What holds the weights: a file, or the folder itself if several ranks have saved. A save removes that of the other kind; if
   * it was killed before that, the newer one counts.
   */
  get checkpoint(): string {
    const saved = (path: string): number => {
      try {
        return statSync(path).mtimeMs
      } catch {
        return 0
      }
    }
    return saved(utils.rankIndexIn(this.path)) > saved(this.#file) ? this.path : this.#file
  }

  /** Whether the folder has one of its files, or a link in its place. Errors: FILE_SYSTEM. */
  get holdsRun(): boolean {
    try {
      return this.replaced.some((path) => lstatSync(path, { throwIfNoEntry: false }) !== undefined)
    } catch (cause) {
      const text = `cannot read ${this.path}: ${(cause as Error).message}`
      throw new MoeError('FILE_SYSTEM', this.#op, text, { cause })
    }
  }

  /** Whether the folder holds a description and the checkpoint of the same save. Does not throw. */
  get holdsSave(): boolean {
    try {
      this.#checkId((this.read() as Partial<ModelDescription>).id, checkpointHeaderSync(this.checkpoint).metadata)
      return true
    } catch {
      return false
    }
  }

  /** The JSON in run.json, not checked. Errors: FILE_FORMAT, FILE_SYSTEM. */
  read(): unknown {
    const { path, description } = this
    if (!this.holdsRun) utils.fail('FILE_SYSTEM', this.#op, `there is no run in ${path}: st-moe train creates one`)
    const bytes = utils.within(this.#op, () => utils.readFileSync(description, maxBytes))
    try {
      return JSON.parse(new TextDecoder().decode(bytes))
    } catch (cause) {
      const why = `${description} must hold JSON: ${(cause as Error).message}`
      throw new MoeError('FILE_FORMAT', this.#op, why, { cause })
    }
  }

  /**
   * Rejects a checkpoint of another save than `id`, and a model of other sizes than its tensors, before it allocates memory
   * or makes a name. Their bytes, number and shapes are those of the header, which must account for the whole file. V:
   * tokens of the vocabulary. Errors: STATE_DICT, FILE_FORMAT, FILE_SYSTEM.
   */
  checkHolds(sizes: LanguageModelShape, V: number, id: string | undefined): void {
    const needed = weightBytes(sizes, V)
    const { tensors, metadata } = utils.within(this.#op, () => checkpointHeaderSync(this.checkpoint))
    this.#checkId(id, metadata)
    const size = Object.values(tensors).reduce((sum, { bytes }) => sum + bytes, 0)
    const shown = Object.entries(memoryOptions(sizes)).map(([name, value]) => `${kebabCase(name)} ${value}`)
    const refuse = (holds: string, has: string): never => {
      const described = `the model of ${this.description} (${shown.join(', ')})`
      return utils.fail('STATE_DICT', this.#op, `${this.checkpoint} holds ${holds}, but ${described} has ${has}`)
    }
    if (needed > size) refuse(`${size} bytes of tensors`, `at least ${needed}`)
    const held = Object.entries(tensors).filter(([name]) => name.startsWith(modelPrefix))
    const count = weightCount(sizes)
    if (count !== held.length) refuse(`${held.length} tensors of a model`, `${count}`)
    const odd = held.find(([, { dtype }]) => !floats.has(dtype))
    if (odd) refuse(`${utils.show(odd[0])} of type ${utils.show(odd[1].dtype)}`, 'floating-point tensors')
    for (const [name, shape] of Object.entries(weightShapes(sizes, V))) {
      const got = tensors[modelPrefix + name]?.shape
      if (got === undefined || got.length !== shape.length || got.some((n, i) => n !== shape[i]))
        refuse(got ? `${name} ${utils.showShape(got)}` : `no ${name}`, `${name} ${utils.showShape(shape)}`)
    }
  }

  /**
   * Restores from the checkpoint of the save with this id, with a short error instead of a list of tensor names. After an
   * error the targets may have changed. Errors: STATE_DICT, FILE_FORMAT, FILE_SYSTEM.
   */
  async restore(targets: CheckpointTargets, id: string | undefined): Promise<LoadedProgress> {
    const restored = await loadCheckpoint(this.checkpoint, targets).catch((error) => {
      if (!(error instanceof MoeError && error.code === 'STATE_DICT')) throw error
      const text = `${this.checkpoint} does not contain the model of ${this.description}`
      throw new MoeError('STATE_DICT', this.#op, text, { cause: error })
    })
    this.#checkId(id, restored.metadata)
    return restored
  }

  /** The progress in the checkpoint of the save with this id. Errors: STATE_DICT, FILE_FORMAT, FILE_SYSTEM. */
  async progress(id: string | undefined): Promise<LoadedProgress> {
    const progress = await checkpointProgress(this.checkpoint)
    this.#checkId(id, progress.metadata)
    return progress
  }

  /**
   * Writes a description and the checkpoint that belongs to it; the earlier ones stay until both new ones are on disk. With the
   * `group` of a checkpoint its ranks save together ({@link saveCheckpoint}). `indent`: spaces in run.json. Errors: OPTION,
   * FILE_SYSTEM, NON_FINITE; those of collectives.
   */
  async save(description: ModelDescription, checkpoint: Checkpoint, indent = 0): Promise<void> {
    const { id } = description
    const { group } = checkpoint
    const data = `${JSON.stringify(description, null, indent)}\n`
    await saveCheckpoint(group ? this.path : this.#file, checkpoint, {
      metadata: id === undefined ? {} : { [idKey]: id },
      beside: [{ path: this.description, data }],
    })
    if (!group) await utils.removeRankFiles(this.path)
    else if (group.rank === 0) await rm(this.#file).catch(() => {}) // if it stays, the newer one counts
  }

  /** Creates the folder, and locks it for this process until the release. Errors: FILE_SYSTEM. */
  lock(): utils.FileLock {
    return utils.within(this.#op, () => {
      utils.makeFolder(this.path)
      return utils.lockFile(join(this.path, 'run.lock'), this.path)
    })
  }

  /** Rejects a checkpoint that was not saved with the description of this id. */
  #checkId(id: unknown, metadata: Readonly<Record<string, string>> = {}): void {
    if (metadata[idKey] === id) return
    utils.fail('STATE_DICT', this.#op, `run.json and the checkpoint in ${this.path} are of different saves`)
  }
}
