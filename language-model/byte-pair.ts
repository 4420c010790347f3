import { utils } from '../lib/index.js'
import type { TokenDecoder, Tokenizer } from './tokenizer.js'

/** Two tokens that are one. */
export type BytePair = readonly [first: number, second: number]

/**
 * Letters, digits and signs with the space before them, and whitespace: no token crosses their ends. Their length is
 * limited, so that the time to encode a text is proportional to its length.
 */
const words = / ?\p{L}{1,64}| ?\p{N}{1,64}| ?[^\s\p{L}\p{N}]{1,64}|\s{1,64}/gu
/** The most pairs that a {@link BytePairTokenizer} has. */
export const maxMerges = 2 ** 16
/** So that a file of pairs cannot make tokens that double in length. */
const maxBytesOfToken = 256

const keyOf = (first: number, second: number): number => first * 2 ** 20 + second

/**
 * Byte pairs (Sennrich et al., arXiv 1508.07909, on bytes as in GPT-2): token b < 256 is the byte b of UTF-8, and token
 * 256 + i the pair `merges[i]` of tokens. Every text has tokens. CR LF counts as LF.
 *
 * @example
 * ```ts
 * const tokenizer = BytePairTokenizer.train('low lower lowest low lower', 260)
 * const tokens = tokenizer.encode('lower 😀')
 * const decoder = tokenizer.decoder()
 * console.log(tokens.length, Array.from(tokens, (token) => decoder.write(token)).join('')) // → 8 lower 😀
 * ```
 */
export class BytePairTokenizer implements Tokenizer {
  /** In the order in which they are applied. */
  readonly merges: readonly BytePair[]
  readonly #rank = new Map<number, number>()
  readonly #bytes: Uint8Array[] = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte))
  readonly #encoded = new Map<string, readonly number[]>()

  /** Errors: OPTION unless the pairs are unique, of tokens before theirs, and of at most 256 bytes. */
  constructor(merges: readonly BytePair[]) {
    const op = 'BytePairTokenizer'
    const list = utils.copyArray(op, 'merges', merges, maxMerges)
    this.merges = list.map((pair, i) => {
      const [first, second, ...more] = utils.copyArray(op, `merges[${i}]`, pair, 2)
      if (more.length > 0 || second === undefined) utils.fail('OPTION', op, `merges[${i}] must be two tokens`)
      const [a, b] = [first, second].map((token) => utils.checkInteger(op, `merges[${i}]`, token, 0, 255 + i))
      if (this.#rank.has(keyOf(a, b)))
        utils.fail('OPTION', op, `merges[${i}] must be a pair of its own, got [${a}, ${b}]`)
      const bytes = [...this.#bytes[a], ...this.#bytes[b]]
      if (bytes.length > maxBytesOfToken)
        utils.fail('OPTION', op, `merges[${i}] must have at most ${maxBytesOfToken} bytes, got ${bytes.length}`)
      this.#rank.set(keyOf(a, b), 256 + i)
      this.#bytes.push(Uint8Array.from(bytes))
      return Object.freeze([a, b] as const)
    })
  }

  /**
   * The pairs that are the most frequent in a text, one after the other, until there are `size` tokens or no pair occurs
   * twice; on ties the lowest. Errors: OPTION.
   */
  static train(text: string, size: number): BytePairTokenizer {
    const op = 'BytePairTokenizer.train'
    if (typeof text !== 'string') utils.fail('OPTION', op, `text must be a string, got ${utils.show(text)}`)
    utils.checkInteger(op, 'size', size, 256, 256 + maxMerges)
    const pairs = new Pairs(text)
    const merges: BytePair[] = []
    while (256 + merges.length < size) {
      const pair = pairs.mostFrequent()
      if (!pair) break
      pairs.merge(pair, 256 + merges.length)
      merges.push(pair)
    }
    return new BytePairTokenizer(merges)
  }

  /** V, how many tokens there are. */
  get size(): number {
    return 256 + this.merges.length
  }

  /** Errors: OPTION for anything but a string. */
  encode(text: string): Int32Array {
    if (typeof text !== 'string')
      utils.fail('OPTION', 'BytePairTokenizer.encode', `text must be a string, got ${utils.show(text)}`)
    const tokens = new Int32Array(Buffer.byteLength(text))
    let length = 0
    for (const [word] of text.replaceAll('\r\n', '\n').matchAll(words)) {
      for (const token of this.#wordOf(word)) tokens[length++] = token
    }
    return tokens.slice(0, length)
  }

  #wordOf(word: string): readonly number[] {
    const known = this.#encoded.get(word)
    if (known) return known
    let tokens: number[] = [...Buffer.from(word)]
    for (;;) {
      let next = Number.POSITIVE_INFINITY
      for (let i = 1; i < tokens.length; i++)
        next = Math.min(next, this.#rank.get(keyOf(tokens[i - 1], tokens[i])) ?? next)
      if (next === Number.POSITIVE_INFINITY) break
      tokens = merged(tokens, this.merges[next - 256], next)
    }
    if (word.length <= 32 && this.#encoded.size < 2 ** 16) this.#encoded.set(word, tokens)
    return tokens
  }

  /** Bytes that are not UTF-8 are the sign for a broken character. */
  decoder(): TokenDecoder {
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
    return {
      write: (token) => decoder.decode(this.#bytes[token] ?? new Uint8Array(0), { stream: true }),
      end: () => decoder.decode(),
    }
  }
}

/** `token` in the place of each occurrence of a pair, from the left. */
function merged(tokens: readonly number[], [first, second]: BytePair, token: number): number[] {
  const result: number[] = []
  for (let i = 0; i < tokens.length; i++) {
    if (tokens[i] === first && tokens[i + 1] === second) {
      result.push(token)
      i++
    } else result.push(tokens[i])
  }
  return result
}

/** How often pairs of tokens occur in the words of a text. */
class Pairs {
  readonly #words: { tokens: number[]; count: number }[]
  readonly #lengths: number[] = Array(256).fill(1)
  readonly #counts = new Map<number, number>()
  readonly #where = new Map<number, Set<number>>()

  constructor(text: string) {
    const counts = new Map<string, number>()
    for (const [word] of text.replaceAll('\r\n', '\n').matchAll(words)) counts.set(word, (counts.get(word) ?? 0) + 1)
    this.#words = Array.from(counts, ([word, count]) => ({ tokens: [...Buffer.from(word)], count }))
    for (const i of this.#words.keys()) this.#count(i, 1)
  }

  /** One that occurs twice at least, or null. */
  mostFrequent(): BytePair | null {
    let [best, most] = [-1, 1]
    for (const [key, count] of this.#counts) {
      if (count < most || (count === most && (best < 0 || key > best)) || this.#lengthOf(key) > maxBytesOfToken)
        continue
      ;[best, most] = [key, count]
    }
    return best < 0 || most < 2 ? null : [Math.floor(best / 2 ** 20), best % 2 ** 20]
  }

  merge(pair: BytePair, token: number): void {
    const key = keyOf(...pair)
    this.#lengths[token] = this.#lengthOf(key)
    for (const i of [...this.#where.get(key)!]) {
      this.#count(i, -1)
      this.#words[i].tokens = merged(this.#words[i].tokens, pair, token)
      this.#count(i, 1)
    }
  }

  #lengthOf(key: number): number {
    return this.#lengths[Math.floor(key / 2 ** 20)] + this.#lengths[key % 2 ** 20]
  }

  /** Adds the pairs of a word, or takes them away. */
  #count(i: number, sign: 1 | -1): void {
    const { tokens, count } = this.#words[i]
    for (let j = 1; j < tokens.length; j++) {
      const key = keyOf(tokens[j - 1], tokens[j])
      const left = (this.#counts.get(key) ?? 0) + sign * count
      if (left > 0) this.#counts.set(key, left)
      else this.#counts.delete(key)
      if (sign > 0) this.#where.set(key, (this.#where.get(key) ?? new Set()).add(i))
      else this.#where.get(key)?.delete(i)
    }
  }
}
