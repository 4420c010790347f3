import { createHash } from 'node:crypto'
import { scope, type Tensor } from '../../lib/index.js'

export type Numbers = ArrayLike<number>

/** ‖a − b‖ / ‖b‖, or ‖a‖ if b is all zeros. NaN or another length is infinite. */
export function relativeError(a: Numbers, b: Numbers): number {
  if (a.length !== b.length) return Infinity
  let difference = 0
  let norm = 0
  for (let i = 0; i < a.length; i++) {
    difference += (a[i] - b[i]) ** 2
    norm += b[i] ** 2
  }
  const error = norm === 0 ? Math.sqrt(difference) : Math.sqrt(difference / norm)
  return Number.isNaN(error) ? Infinity : error
}

export const values = (tensor: Tensor): Numbers => tensor.dataSync()

export const listOf = (tensor: Tensor): number[] => Array.from(tensor.dataSync())

/** A hash of the bytes of a tensor, which is far cheaper to compare than its numbers. */
export function bitsOf(tensor: Tensor): string {
  if (tensor.dtype === 'int8') return scope(() => bitsOf(tensor.to('f32')))
  const { buffer, byteOffset, byteLength } = tensor.dataSync()
  return createHash('sha256')
    .update(Buffer.from(buffer, byteOffset, byteLength))
    .digest('hex')
}

/** [A, B, C] as arrays. */
export function nested(tensor: Tensor): number[][][] {
  const [A, B, C] = tensor.shape
  const list = listOf(tensor)
  const row = (i: number) => list.slice(i * C, (i + 1) * C)
  return Array.from({ length: A }, (_, a) => Array.from({ length: B }, (_, b) => row(a * B + b)))
}

/** A small seeded generator (mulberry32), so that a failure can be repeated from the printed seed. */
export class Draw {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** Uniform on [0, 1) with 32 bits. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }

  between(low: number, high: number): number {
    return low + (high - low) * this.next()
  }

  /** An integer from low to high, both included. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1))
  }

  boolean(probability = 0.5): boolean {
    return this.next() < probability
  }

  of<T>(choices: readonly T[]): T {
    return choices[this.integer(0, choices.length - 1)]
  }

  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next())
  }

  /** `size` numbers from `draw`, by default standard normal. */
  array(size: number, draw: () => number = () => this.normal()): Float64Array {
    return Float64Array.from({ length: size }, draw)
  }
}

/** Whether all of it is tested, as before a release: more random cases, longer runs, and what rarely breaks. */
export const long = process.env.ST_MOE_TEST_LONG === '1'

/** The first `count` of the cases, all of them before a release. */
export const some = <T>(cases: readonly T[], count: number): readonly T[] => (long ? cases : cases.slice(0, count))

/** The seed of the random tests: ST_MOE_SEED, or always the same. */
export function runSeed(): number {
  const given = Number(process.env.ST_MOE_SEED)
  return Number.isSafeInteger(given) && given > 0 ? given : 220208906
}
