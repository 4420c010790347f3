import { utils } from '../lib/index.js'
import { type BytePair, keyOf, maxBytesOfToken, WordCounts, words } from './pair-merges.js'
import type { TokenDecoder, Tokenizer } from './tokenizer.js'

/** The most pairs that a {@link BytePairTokenizer} has. */
export const maxMerges = 2 ** 16

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
    const counts = new WordCounts()
    counts.add(text.replaceAll('\r\n', '\n'))
    return new BytePairTokenizer([...counts.take().merges(size - 256)])
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
    const bytes = Buffer.from(word)
    let tokens: number[] = [...bytes]
    for (;;) {
      let next = Number.POSITIVE_INFINITY
      for (let i = 1; i < tokens.length; i++)
        next = Math.min(next, this.#rank.get(keyOf(tokens[i - 1], tokens[i])) ?? next)
      if (next === Number.POSITIVE_INFINITY) break
      tokens = merged(tokens, this.merges[next - 256], next)
    }
    // a copy of the word: a part of a string keeps all of it in memory
    if (word.length <= 32 && this.#encoded.size < 2 ** 16) this.#encoded.set(bytes.toString(), tokens)
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
