import { utils } from '../lib/index.js'

/** Text as tokens: numbers from 0 to `size` − 1. {@link CharacterTokenizer} is one. */
export interface Tokenizer {
  /** V, how many tokens there are. */
  readonly size: number
  /** The tokens of a text. Errors: OPTION for a text that has none. */
  encode(text: string): Int32Array
  /** The text of tokens, one after another. */
  decoder(): TokenDecoder
}

/** The text of a sequence of tokens as it grows. */
export interface TokenDecoder {
  /** What the text gets longer by; '' as long as a character is not complete. */
  write(token: number): string
  /** What is left: the sign for a broken character, or ''. */
  end(): string
}

/**
 * The text of tokens.
 *
 * @example
 * ```ts
 * const tokenizer = CharacterTokenizer.of('to be')
 * console.log(textOf(tokenizer, tokenizer.encode('bet'))) // → bet
 * ```
 */
export function textOf(tokenizer: Tokenizer, tokens: Iterable<number>): string {
  const decoder = tokenizer.decoder()
  return Array.from(tokens, (token) => decoder.write(token)).join('') + decoder.end()
}

/** Something with the methods of a {@link Tokenizer}. */
export function checkTokenizer(op: string, value: unknown): Tokenizer {
  const { size, encode, decoder } = (value ?? {}) as Partial<Tokenizer>
  if (typeof encode !== 'function' || typeof decoder !== 'function')
    utils.fail(
      'OPTION',
      op,
      `tokenizer must be a Tokenizer, such as CharacterTokenizer.of(text), got ${utils.show(value)}`,
    )
  if (!Number.isSafeInteger(size) || (size as number) < 1)
    utils.fail('OPTION', op, `tokenizer.size must be an integer of at least 1, got ${utils.show(size)}`)
  return value as Tokenizer
}

/**
 * A token per character (code point); CR LF counts as LF.
 *
 * @example
 * ```ts
 * const characters = CharacterTokenizer.of('banana')
 * console.log(characters.vocabulary, characters.encode('nab')) // → [ 'a', 'b', 'n' ] Int32Array(3) [ 2, 0, 1 ]
 * ```
 */
export class CharacterTokenizer implements Tokenizer {
  /** The character of each token. */
  readonly vocabulary: readonly string[]
  /** By code point; -1 for others. */
  readonly #tokens: Int32Array

  /** The characters in the order of their tokens. Errors: OPTION unless they are unique characters. */
  constructor(vocabulary: readonly string[]) {
    const op = 'CharacterTokenizer'
    const characters = utils.copyArray(op, 'vocabulary', vocabulary, 0x110000) as string[]
    const wrong = characters.find((character) => typeof character !== 'string' || !isCharacter(character))
    if (wrong !== undefined)
      utils.fail('OPTION', op, `vocabulary must hold single characters, got ${utils.show(wrong)}`)
    if (characters.length === 0 || new Set(characters).size < characters.length)
      utils.fail('OPTION', op, 'vocabulary must hold unique characters, at least one')
    const codes = characters.map((character) => character.codePointAt(0)!)
    this.#tokens = new Int32Array(codes.reduce((a, b) => Math.max(a, b)) + 1).fill(-1)
    for (const [token, code] of codes.entries()) this.#tokens[code] = token
    this.vocabulary = Object.freeze(characters)
  }

  /** The characters of a text, sorted. */
  static of(text: string): CharacterTokenizer {
    if (typeof text !== 'string')
      utils.fail('OPTION', 'CharacterTokenizer.of', `text must be a string, got ${utils.show(text)}`)
    return new CharacterTokenizer([...new Set(text.replaceAll('\r\n', '\n'))].sort())
  }

  /** V, how many tokens there are. */
  get size(): number {
    return this.vocabulary.length
  }

  /** Errors: OPTION for characters outside the vocabulary. */
  encode(text: string): Int32Array {
    const op = 'CharacterTokenizer.encode'
    if (typeof text !== 'string') utils.fail('OPTION', op, `text must be a string, got ${utils.show(text)}`)
    const plain = text.replaceAll('\r\n', '\n')
    const tokens = new Int32Array(plain.length)
    let length = 0
    let isKnown = true
    for (let i = 0; i < plain.length; i++) {
      const code = plain.codePointAt(i)!
      if (code > 0xffff) i++
      const token = this.#tokens[code] ?? -1
      if (token < 0) isKnown = false
      tokens[length++] = token
    }
    if (!isKnown) {
      const unknown = [...new Set(plain)].filter((character) => !this.vocabulary.includes(character)).slice(0, 10)
      const shown = unknown.map((character) => JSON.stringify(character)).join(' ')
      utils.fail('OPTION', op, `text contains characters outside the model's vocabulary: ${shown}`)
    }
    return tokens.subarray(0, length)
  }

  /** Every token is a whole character. */
  decoder(): TokenDecoder {
    return { write: (token) => this.vocabulary[token] ?? '', end: () => '' }
  }
}

const isCharacter = (text: string): boolean => /^[^\p{Surrogate}]$/su.test(text)
