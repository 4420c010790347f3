import { createHash } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import { utils } from '../lib/index.js'
import { BytePairTokenizer, maxMerges } from './byte-pair.js'
import { type BytePair, lastWordIn, WordCounts } from './pair-merges.js'
import { type TextFile, textAt, textIn } from './text.js'
import { type TokenArray, TokenWriter } from './token-array.js'
import { CharacterTokenizer, checkTokenizer, type Tokenizer } from './tokenizer.js'

/** Both parts of a text as tokens. */
export interface Tokens<T extends Tokenizer = Tokenizer> {
  /** What made the tokens. */
  tokenizer: T
  /** The first 90 % of the text, of a folder the first 90 % of each file. */
  training: TokenArray
  /** The rest, which the model is not trained on. */
  heldOut: TokenArray
}

/** A text, as tokens of the model and as characters. */
export interface Corpus extends Tokens {
  /** Its name, for reports. */
  name: string
  /** SHA-256 of the whole text; of a folder, of the SHA-256 of its files. */
  digest: string
  /** Both parts with a token for each character. */
  characters: Tokens<CharacterTokenizer>
}

/** How far {@link loadCorpus} is with a part of its work. */
export interface CorpusProgress {
  /** What it does. */
  stage: 'reading' | 'encoding characters' | 'counting words' | 'merging byte pairs' | 'encoding byte pairs'
  /** Bytes of the text that are done; of merging, pairs. */
  done: number
  /** All of them. */
  total: number
}

/** Options of {@link loadCorpus}. */
export interface CorpusOptions {
  /** Its name, for reports. Default: the path. */
  name?: string
  /** Tokens per sequence; the text must be long enough for it. */
  context: number
  /** The text itself, in one array or in several. Default: what is at the path. */
  bytes?: Uint8Array | readonly Uint8Array[]
  /**
   * The tokenizer of the text. It encodes a part of 256 KiB at a time, which begins with a word or a space. By default
   * every character is a token.
   */
  tokenizer?: Tokenizer
  /** Instead of a tokenizer: train one of this many tokens, byte pairs, on the training text. */
  vocabSize?: number
  /** Told after each part of a text, and each pair. */
  progress?: (progress: CorpusProgress) => void
}

const op = 'loadCorpus'

/**
 * Reads a UTF-8 text for a {@link LanguageModel} and splits it: the first 90 % to train on, the rest to evaluate. CR LF
 * counts as LF. Of a folder, all files below it are read in the order of their paths, except those with a name, or in a
 * folder with a name, that begins with a dot; the last tenth of each is held out.
 *
 * A text has at most 2 GiB. It is never in memory as a whole, only its tokens are: a byte for a character, two if there
 * are more than 256 different ones.
 *
 * Errors: FILE_FORMAT if it is not a text, or too short or large; FILE_SYSTEM, OPTION, OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * utils.writeFilesSync([{ path: 'rose.txt', data: 'a rose is a rose is a rose '.repeat(20) }])
 * const { tokenizer, training, heldOut } = await loadCorpus('rose.txt', { context: 16 })
 * console.log(tokenizer.size, training.length, heldOut.length) // → 7 486 54
 * ```
 */
export async function loadCorpus(path: string, options: CorpusOptions): Promise<Corpus> {
  const { name = path, context, bytes, vocabSize, progress = () => {} } = options
  if (vocabSize !== undefined) {
    if (options.tokenizer) utils.fail('OPTION', op, 'vocabSize trains a tokenizer: give it or a tokenizer, not both')
    utils.checkInteger(op, 'vocabSize', vocabSize, 256, 256 + maxMerges)
  }
  const reading = new Reading(bytes === undefined ? textAt(op, path) : textIn(op, path, bytes), progress)
  const { digest, vocabulary, lengths } = await surveyOf(reading)
  if (lengths.every((length) => length === 0)) utils.fail('FILE_FORMAT', op, `${path} is empty`)
  const characters = await charactersOf(reading, new CharacterTokenizer(vocabulary), lengths)
  const tokenizer =
    vocabSize === undefined
      ? options.tokenizer && checkTokenizer(op, options.tokenizer)
      : await bytePairsOf(reading, lengths, vocabSize)
  const tokens = tokenizer ? await tokensOf(reading, tokenizer, characters, lengths) : characters
  const { training, heldOut } = tokens
  // a tenth of the text may compress better than the rest, and the other way round
  if (heldOut.length <= context || training.length <= 2 * context) {
    const length = training.length + heldOut.length
    const [unit, needed] = tokenizer ? ['tokens', 'more of them'] : ['characters', `at least ${(context + 1) * 10}`]
    utils.fail('FILE_FORMAT', op, `${path} has ${length} ${unit}; a context of ${context} needs ${needed}`)
  }
  return { name, digest, characters, ...tokens }
}

/** Reads a text again and again, and says how far it is. */
class Reading {
  readonly files: readonly TextFile[]
  readonly progress: (progress: CorpusProgress) => void

  constructor(files: readonly TextFile[], progress: (progress: CorpusProgress) => void) {
    this.files = files
    this.progress = progress
  }

  /** The pieces of all files, each with the number of its file. Between them the program does other things. */
  async *pieces(stage: CorpusProgress['stage']): AsyncGenerator<readonly [piece: string, file: number], void, void> {
    const total = this.files.reduce((sum, { size }) => sum + size, 0)
    let before = 0
    for (const [i, file] of this.files.entries()) {
      for (const { text, end } of file.pieces()) {
        yield [text, i]
        this.progress({ stage, done: before + end, total })
        await setImmediate()
      }
      before += file.size
    }
  }

  /** Like {@link pieces}, in parts of the training text and of the held-out text that begin and end where words do. */
  async *parts(
    stage: CorpusProgress['stage'],
    lengths: readonly number[],
  ): AsyncGenerator<readonly [text: string, isTraining: boolean], void, void> {
    let [now, rest, left] = [-1, '', 0]
    for await (const [piece, file] of this.pieces(stage)) {
      let text = piece
      if (file !== now) {
        if (rest !== '') yield [rest, left > 0]
        ;[now, rest, left] = [file, '', trainingLength(lengths[file])]
      }
      if (left > 0) {
        const end = endOf(text, left)
        left -= lengthOf(text.slice(0, end))
        if (left === 0) {
          yield [rest + text.slice(0, end), true]
          ;[rest, text] = ['', text.slice(end)]
        }
      }
      rest += text
      const end = lastWordIn(rest)
      if (end > 0) yield [rest.slice(0, end), left > 0]
      rest = rest.slice(end)
    }
    if (rest !== '') yield [rest, left > 0]
  }
}

/** How many of the characters of a file are training text. */
const trainingLength = (length: number): number => Math.floor(length * 0.9)

async function surveyOf(reading: Reading) {
  const hashes = reading.files.map(() => createHash('sha256'))
  const lengths = hashes.map(() => 0)
  const seen = new Uint8Array(0x110000)
  for await (const [piece, i] of reading.pieces('reading')) {
    hashes[i].update(piece)
    // CR CR LF is a CR LF by now, and a character
    lengths[i] += lengthOf(piece.replaceAll('\r\n', '\n'), (code) => {
      seen[code] = 1
    })
  }
  const vocabulary: string[] = []
  for (let code = seen.indexOf(1); code >= 0; code = seen.indexOf(1, code + 1))
    vocabulary.push(String.fromCodePoint(code))
  const digests = hashes.map((hash) => hash.digest('hex'))
  const digest = digests.length === 1 ? digests[0] : createHash('sha256').update(digests.join('\n')).digest('hex')
  return { digest, vocabulary: vocabulary.sort(), lengths }
}

async function charactersOf(
  reading: Reading,
  tokenizer: CharacterTokenizer,
  lengths: readonly number[],
): Promise<Tokens<CharacterTokenizer>> {
  const left = lengths.map(trainingLength)
  const count = (of: readonly number[]): number => of.reduce((a, b) => a + b, 0)
  const expected = count(left)
  const training = new TokenWriter(op, tokenizer.size, expected)
  const heldOut = new TokenWriter(op, tokenizer.size, count(lengths) - expected)
  for await (const [piece, i] of reading.pieces('encoding characters')) {
    const tokens = tokenizer.encode(piece)
    training.write(tokens.subarray(0, left[i]))
    heldOut.write(tokens.subarray(left[i]))
    left[i] = Math.max(0, left[i] - tokens.length)
  }
  return { tokenizer, training: training.written, heldOut: heldOut.written }
}

async function bytePairsOf(
  reading: Reading,
  lengths: readonly number[],
  vocabSize: number,
): Promise<BytePairTokenizer> {
  const counts = new WordCounts()
  for await (const [text, isTraining] of reading.parts('counting words', lengths))
    if (isTraining) counts.add(text.replaceAll('\r\n', '\n'))
  const merges: BytePair[] = []
  for (const pair of counts.take().merges(vocabSize - 256)) {
    merges.push(pair)
    reading.progress({ stage: 'merging byte pairs', done: merges.length, total: vocabSize - 256 })
    await setImmediate()
  }
  return new BytePairTokenizer(merges)
}

async function tokensOf(
  reading: Reading,
  tokenizer: Tokenizer,
  characters: Tokens,
  lengths: readonly number[],
): Promise<Tokens> {
  const training = new TokenWriter(op, tokenizer.size, characters.training.length)
  const heldOut = new TokenWriter(op, tokenizer.size, characters.heldOut.length)
  for await (const [text, isTraining] of reading.parts('encoding byte pairs', lengths)) {
    const part = isTraining ? training : heldOut
    part.write(tokenizer.encode(text))
  }
  return { tokenizer, training: training.written, heldOut: heldOut.written }
}

/** The number of characters of a text; `each` gets their code points. */
function lengthOf(text: string, each: (code: number) => void = () => {}): number {
  let length = 0
  for (let i = 0; i < text.length; i++, length++) {
    const code = text.codePointAt(i)!
    if (code > 0xffff) i++
    each(code)
  }
  return length
}

/** Where the first `count` characters of a text end. */
function endOf(text: string, count: number): number {
  let end = 0
  for (let i = 0; i < count && end < text.length; i++) end += text.codePointAt(end)! > 0xffff ? 2 : 1
  return end
}
