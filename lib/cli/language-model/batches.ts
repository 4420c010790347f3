import { Generator, rand } from '../../index.js'

/** Input and target of one step: `batch` concatenated sequences; the target is the next token. */
export interface Batch {
  input: Int32Array
  target: Int32Array
}

/** Copies the sequences at `starts` from a text. */
export function cut(text: Int32Array, starts: readonly number[], context: number): Batch {
  const input = new Int32Array(starts.length * context)
  const target = new Int32Array(starts.length * context)
  for (const [i, start] of starts.entries()) {
    input.set(text.subarray(start, start + context), i * context)
    target.set(text.subarray(start + 1, start + context + 1), i * context)
  }
  return { input, target }
}

/**
 * The training text in random order: an epoch shifts the grid of sequences by a random offset and shuffles it, and
 * visits every sequence once. The batch of a step depends only on seed and step, so there is no state to save.
 */
export class Batches {
  readonly #text: Int32Array
  readonly #seed: number
  readonly #context: number
  readonly #batch: number
  readonly #sequences: number
  #epoch = -1
  #starts: number[] = []

  constructor(text: Int32Array, { seed, context, batch }: { seed: number; context: number; batch: number }) {
    this.#text = text
    this.#seed = seed
    this.#context = context
    this.#batch = batch
    this.#sequences = Math.floor(text.length / context) - 1
  }

  at(step: number): Batch {
    const starts = Array.from({ length: this.#batch }, (_, i) => this.#startOf(step * this.#batch + i))
    return cut(this.#text, starts, this.#context)
  }

  #startOf(position: number): number {
    const epoch = Math.floor(position / this.#sequences)
    if (epoch !== this.#epoch) this.#shuffle(epoch)
    return this.#starts[position % this.#sequences]
  }

  #shuffle(epoch: number): void {
    using uniforms = rand([this.#sequences + 1], { generator: new Generator(this.#seed, epoch), dtype: 'f64' })
    const [first, ...keys] = uniforms.dataSync()
    const offset = Math.floor(first * this.#context)
    const order = keys.map((_, i) => i).sort((a, b) => keys[a] - keys[b])
    this.#starts = order.map((i) => offset + i * this.#context)
    this.#epoch = epoch
  }
}
