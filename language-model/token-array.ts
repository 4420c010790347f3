import { totalmem } from 'node:os'
import { utils } from '../lib/index.js'

/** Tokens of a text, in integers that are as small as the vocabulary allows. */
export type TokenArray = Uint8Array | Uint16Array | Int32Array

/**
 * Bytes of memory that the machine has, or the container.
 *
 * @example
 * ```ts
 * console.log(availableMemory() > 2 ** 20) // → true
 * ```
 */
export function availableMemory(): number {
  return Math.min(totalmem(), process.constrainedMemory?.() || Number.POSITIVE_INFINITY)
}

/** Room for `length` tokens of a vocabulary of V. Errors: OUT_OF_MEMORY. */
export function tokenArray(op: string, V: number, length: number): TokenArray {
  const Type = V <= 2 ** 8 ? Uint8Array : V <= 2 ** 16 ? Uint16Array : Int32Array
  const needed = length * Type.BYTES_PER_ELEMENT
  try {
    if (needed <= availableMemory()) return new Type(length)
  } catch {}
  return utils.fail(
    'OUT_OF_MEMORY',
    op,
    `${length} tokens need ${(needed / 1e9).toPrecision(3)} GB of memory: train on a part of the text`,
  )
}

/** Tokens one after another. */
export class TokenWriter {
  readonly #op: string
  readonly #V: number
  #tokens: TokenArray
  #length = 0

  /** `expected`: how many tokens there will be; more are copied. */
  constructor(op: string, V: number, expected: number) {
    this.#op = op
    this.#V = V
    this.#tokens = tokenArray(op, V, expected)
  }

  write(more: ArrayLike<number>): void {
    const length = this.#length + more.length
    if (length > this.#tokens.length) {
      const larger = tokenArray(this.#op, this.#V, Math.ceil(length * 1.25))
      larger.set(this.written)
      this.#tokens = larger
    }
    this.#tokens.set(more, this.#length)
    this.#length = length
  }

  get written(): TokenArray {
    return this.#tokens.subarray(0, this.#length)
  }
}
