import { createHash } from 'node:crypto'
import { Failure } from '../errors.js'
import { readBytes } from '../files.js'

/** A text as numbers, one for each different character. */
export interface Corpus {
  name: string
  /** Of the whole text, to recognise it. */
  digest: string
  /** The characters, by number. */
  vocabulary: string[]
  /** The first 90 % of the text. */
  training: Int32Array
  /** The rest, which the model never learns from. */
  heldOut: Int32Array
}

const maxBytes = 2 ** 26

/** Reads a text file in UTF-8; CR LF counts as LF. `context`: characters in a sequence, of which it must hold some. */
export function loadCorpus(path: string, context: number, name: string): Corpus {
  const text = readText(path).replaceAll('\r\n', '\n')
  const vocabulary = [...new Set(text)].sort()
  const numberOf = new Map(vocabulary.map((character, i) => [character, i]))
  const all = new Int32Array(text.length)
  let length = 0
  for (const character of text) all[length++] = numberOf.get(character)!
  const split = Math.floor(length * 0.9)
  if (length - split <= context) {
    const needed = (context + 1) * 10
    throw new Failure(`${path} has ${length} characters; a context of ${context} needs at least ${needed}`)
  }
  const digest = createHash('sha256').update(text).digest('hex')
  return { name, digest, vocabulary, training: all.subarray(0, split), heldOut: all.subarray(split, length) }
}

function readText(path: string): string {
  const bytes = readBytes(path, maxBytes, 'learned')
  if (bytes.length === 0) throw new Failure(`${path} is empty`)
  if (bytes.includes(0)) throw new Failure(`${path} is not a text: it holds a zero byte`)
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw new Failure(`${path} is not a text in UTF-8`)
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
