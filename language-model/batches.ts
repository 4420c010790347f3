import { types } from 'node:util'
import { Generator, rand, utils } from '../lib/index.js'
import type { TokenArray } from './token-array.js'

/** Sequences of a text, one after another, and the next token of each of theirs. */
export interface Batch {
  /** [B · N] */
  input: Int32Array
  /** [B · N] */
  target: Int32Array
}

/**
 * The sequences of `context` tokens that start at `starts`, copied from a text.
 *
 * @example
 * ```ts
 * const { input, target } = sequencesAt(Int32Array.of(5, 6, 7, 8), [0, 1], 2)
 * console.log(input.join(), target.join()) // → 5,6,6,7 6,7,7,8
 * ```
 */
export function sequencesAt(text: TokenArray, starts: readonly number[], context: number): Batch {
  const input = new Int32Array(starts.length * context)
  const target = new Int32Array(starts.length * context)
  for (const [i, start] of starts.entries()) {
    input.set(text.subarray(start, start + context), i * context)
    target.set(text.subarray(start + 1, start + context + 1), i * context)
  }
  return { input, target }
}

const readOptions = utils.reader({
  seed: utils.integer({ min: 0 }),
  context: utils.integer({ min: 1 }),
  batch: utils.integer({ min: 1 }),
})

/** Options of {@link Batches}. */
export interface BatchesOptions {
  /** Seed of the order. */
  seed: number
  /** N, tokens per sequence. */
  context: number
  /** B, sequences per batch. */
  batch: number
}

/**
 * A training text in random order: an epoch shifts the grid of sequences by a random offset and shuffles it, and visits
 * every sequence once. The batch of a step depends only on seed and step, so there is no state to save.
 *
 * @example
 * ```ts
 * const tokens = CharacterTokenizer.of('abcd').encode('abcd'.repeat(100))
 * const batches = new Batches(tokens, { seed: 1, context: 8, batch: 4 })
 * console.log(batches.at(0).input.length) // → 32
 * ```
 */
export class Batches {
  readonly #text: TokenArray
  readonly #seed: number
  readonly #context: number
  readonly #batch: number
  readonly #sequences: number
  #epoch = -1
  #offset = 0
  #order = new Uint32Array()

  /** Errors: OPTION for a text of less than two sequences. */
  constructor(text: TokenArray, options: BatchesOptions) {
    const { seed, context, batch } = readOptions('Batches', options)
    this.#text = text
    this.#seed = seed
    this.#context = context
    this.#batch = batch
    this.#sequences = Math.floor(text.length / context) - 1
    if (!isTokenArray(text) || this.#sequences < 1)
      utils.fail(
        'OPTION',
        'Batches',
        `text must be a Uint8Array, Uint16Array or Int32Array of at least ${2 * context} tokens, got ${utils.show(text)}`,
      )
  }

  /** The batch of a step, counted from 0. */
  at(step: number): Batch {
    const starts = Array.from({ length: this.#batch }, (_, i) => this.#startOf(step * this.#batch + i))
    return sequencesAt(this.#text, starts, this.#context)
  }

  #startOf(position: number): number {
    const epoch = Math.floor(position / this.#sequences)
    if (epoch !== this.#epoch) this.#shuffle(epoch)
    return this.#offset + this.#order[position % this.#sequences] * this.#context
  }

  #shuffle(epoch: number): void {
    const generator = new Generator(this.#seed, epoch)
    using uniforms = rand([this.#sequences + 1], { generator, dtype: 'f64', device: 'cpu' })
    const values = uniforms.dataSync()
    const keys = values.subarray(1)
    this.#offset = Math.floor(values[0] * this.#context)
    this.#order = Uint32Array.from(keys, (_, i) => i).sort((a, b) => keys[a] - keys[b])
    this.#epoch = epoch
  }
}

const isTokenArray = (text: unknown): text is TokenArray =>
  types.isUint8Array(text) || types.isUint16Array(text) || types.isInt32Array(text)
