import { createHash } from 'node:crypto'
import { CharacterTokenizer, type Tokenizer } from '../../index.js'
import { Failure } from '../errors.js'
import { readBytes } from '../files.js'

/** Both parts of a text as tokens. */
export interface Tokens<T extends Tokenizer = Tokenizer> {
  tokenizer: T
  /** The first 90 % of the text. */
  training: Int32Array
  /** The rest, which the model is not trained on. */
  heldOut: Int32Array
}

/** A text, as tokens of the model and as characters. */
export interface Corpus extends Tokens {
  name: string
  /** SHA-256 of the whole text. */
  digest: string
  characters: Tokens<CharacterTokenizer>
}

export interface CorpusOptions {
  name: string
  /** Tokens per sequence; the text must be long enough for it. */
  context: number
  /** Default: those of the file. */
  bytes?: Buffer
  /** The tokenizer for the training text. By default every character is a token. */
  tokenizer?: (training: string) => Tokenizer
}

export const maxBytes = 2 ** 26

/** Reads a UTF-8 text; CR LF counts as LF. */
export function loadCorpus(path: string, options: CorpusOptions): Corpus {
  const { name, context, bytes = readBytes(path, maxBytes) } = options
  const text = decoded(path, bytes).replaceAll('\r\n', '\n')
  if (text === '') throw new Failure(`${path} is empty`)
  const characters = charactersOf(text)
  const corpus = {
    name,
    digest: createHash('sha256').update(text).digest('hex'),
    characters,
    ...(options.tokenizer ? tokensOf(text, characters.training.length, options.tokenizer) : characters),
  }
  const { training, heldOut } = corpus
  // a tenth of the text may compress better than the rest, and the other way round
  if (heldOut.length <= context || training.length <= 2 * context) {
    const length = training.length + heldOut.length
    const [unit, needed] = options.tokenizer
      ? ['tokens', 'more of them']
      : ['characters', `at least ${(context + 1) * 10}`]
    throw new Failure(`${path} has ${length} ${unit}; a context of ${context} needs ${needed}`)
  }
  return corpus
}

function charactersOf(text: string): Tokens<CharacterTokenizer> {
  const tokenizer = CharacterTokenizer.of(text)
  const all = tokenizer.encode(text)
  const split = Math.floor(all.length * 0.9)
  return { tokenizer, training: all.subarray(0, split), heldOut: all.subarray(split) }
}

/** `split`: how many characters are training text. */
function tokensOf(text: string, split: number, make: (training: string) => Tokenizer): Tokens {
  let end = 0
  for (let i = 0; i < split; i++) end += text.codePointAt(end)! > 0xffff ? 2 : 1
  const training = text.slice(0, end)
  const tokenizer = make(training)
  return { tokenizer, training: tokenizer.encode(training), heldOut: tokenizer.encode(text.slice(end)) }
}

/** Without a byte order mark. */
function decoded(path: string, bytes: Buffer): string {
  if (bytes.includes(0)) throw new Failure(`${path} is not a text file: it contains a zero byte`)
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw new Failure(`${path} is not valid UTF-8`)
  }
}

/** The beginning of the first full paragraph of the held-out text: whole words, at most `length` characters. */
export function promptOf(
  { heldOut, tokenizer: { vocabulary } }: Tokens<CharacterTokenizer>,
  length: number,
): Int32Array {
  const [lineEnd, space] = [vocabulary.indexOf('\n'), vocabulary.indexOf(' ')]
  const gap = heldOut.findIndex((character, i) => character === lineEnd && heldOut[i + 1] === lineEnd)
  const start = gap >= 0 && gap + 2 + length < heldOut.length ? gap + 2 : 0
  const end = heldOut.lastIndexOf(space, start + length - 1)
  return heldOut.subarray(start, end > start ? end + 1 : start + length)
}
