import { createHash } from 'node:crypto'
import { utils } from '../lib/index.js'
import { CharacterTokenizer, type Tokenizer } from './tokenizer.js'

/** Both parts of a text as tokens. */
export interface Tokens<T extends Tokenizer = Tokenizer> {
  /** What made the tokens. */
  tokenizer: T
  /** The first 90 % of the text. */
  training: Int32Array
  /** The rest, which the model is not trained on. */
  heldOut: Int32Array
}

/** A text, as tokens of the model and as characters. */
export interface Corpus extends Tokens {
  /** Its name, for reports. */
  name: string
  /** SHA-256 of the whole text. */
  digest: string
  /** Both parts with a token for each character. */
  characters: Tokens<CharacterTokenizer>
}

/** Options of {@link loadCorpus}. */
export interface CorpusOptions {
  /** Its name, for reports. Default: the path. */
  name?: string
  /** Tokens per sequence; the text must be long enough for it. */
  context: number
  /** The text itself. Default: the content of the file, at most 64 MiB. */
  bytes?: Uint8Array
  /** The tokenizer for the training text. By default every character is a token. */
  tokenizer?: (training: string) => Tokenizer
}

/** The most bytes of a text. */
export const maxTextBytes = 2 ** 26
const op = 'loadCorpus'

/**
 * Reads a UTF-8 text for a {@link LanguageModel} and splits it: the first 90 % to train on, the rest to evaluate. CR LF
 * counts as LF. Errors: FILE_FORMAT if it is not a text or too short, FILE_SYSTEM.
 *
 * @example
 * ```ts
 * utils.writeFilesSync([{ path: 'rose.txt', data: 'a rose is a rose is a rose '.repeat(20) }])
 * const { tokenizer, training, heldOut } = loadCorpus('rose.txt', { context: 16 })
 * console.log(tokenizer.size, training.length, heldOut.length) // → 7 486 54
 * ```
 */
export function loadCorpus(path: string, options: CorpusOptions): Corpus {
  const { name = path, context, bytes = utils.within(op, () => utils.readFileSync(path, maxTextBytes)) } = options
  const text = decoded(path, bytes).replaceAll('\r\n', '\n')
  if (text === '') utils.fail('FILE_FORMAT', op, `${path} is empty`)
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
    utils.fail('FILE_FORMAT', op, `${path} has ${length} ${unit}; a context of ${context} needs ${needed}`)
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
function decoded(path: string, bytes: Uint8Array): string {
  if (bytes.includes(0)) utils.fail('FILE_FORMAT', op, `${path} is not a text file: it contains a zero byte`)
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    utils.fail('FILE_FORMAT', op, `${path} is not valid UTF-8`)
  }
}
