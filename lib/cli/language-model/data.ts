import { createHash } from 'node:crypto'
import { Failure } from '../errors.js'
import { readBytes } from '../files.js'

/** A text as tokens: one token per character of the vocabulary. */
export interface Corpus {
  name: string
  /** SHA-256 of the whole text. */
  digest: string
  /** The character of each token. */
  vocabulary: string[]
  /** The first 90 % of the text. */
  training: Int32Array
  /** The rest, which the model is not trained on. */
  heldOut: Int32Array
}

const maxBytes = 2 ** 26

/**
 * Reads a UTF-8 text file; CR LF counts as LF. `context`: characters per sequence; the text must be long enough for it.
 */
export function loadCorpus(path: string, context: number, name: string): Corpus {
  const text = readText(path).replaceAll('\r\n', '\n')
  const vocabulary = [...new Set(text)].sort()
  const tokenOf = new Map(vocabulary.map((character, i) => [character, i]))
  const all = new Int32Array(text.length)
  let length = 0
  for (const character of text) all[length++] = tokenOf.get(character)!
  const split = Math.floor(length * 0.9)
  if (length - split <= context) {
    const needed = (context + 1) * 10
    throw new Failure(`${path} has ${length} characters; a context of ${context} needs at least ${needed}`)
  }
  const digest = createHash('sha256').update(text).digest('hex')
  return { name, digest, vocabulary, training: all.subarray(0, split), heldOut: all.subarray(split, length) }
}

function readText(path: string): string {
  const bytes = readBytes(path, maxBytes)
  if (bytes.length === 0) throw new Failure(`${path} is empty`)
  if (bytes.includes(0)) throw new Failure(`${path} is not a text file: it contains a zero byte`)
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw new Failure(`${path} is not valid UTF-8`)
  }
}

/** The beginning of the first full paragraph of the held-out text: whole words, at most `length` characters. */
export function promptOf({ heldOut, vocabulary }: Corpus, length: number): Int32Array {
  const [lineEnd, space] = [vocabulary.indexOf('\n'), vocabulary.indexOf(' ')]
  const gap = heldOut.findIndex((character, i) => character === lineEnd && heldOut[i + 1] === lineEnd)
  const start = gap >= 0 && gap + 2 + length < heldOut.length ? gap + 2 : 0
  const end = heldOut.lastIndexOf(space, start + length - 1)
  return heldOut.subarray(start, end > start ? end + 1 : start + length)
}
