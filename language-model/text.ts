import { createHash } from 'node:crypto'
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { MoeError, utils } from '../lib/index.js'

/** The most bytes of a text, of all its files together. */
export const maxTextBytes = 2 ** 31
/** Bytes that are decoded at once. */
const pieceBytes = 2 ** 18
const carriageReturn = 13

/** The bytes of a text: at most `count` from `position` on. */
type Read = (position: number, count: number) => Uint8Array

/** A UTF-8 file, which is read in pieces, as often as it is needed. */
export class TextFile {
  /** For errors. */
  readonly path: string
  /** Bytes. */
  readonly size: number
  readonly #op: string
  readonly #read: Read
  /** A digest of the bytes of each piece: a second reading finds the same. */
  readonly #digests: string[] = []

  constructor(op: string, path: string, size: number, read: Read) {
    this.path = path
    this.size = size
    this.#op = op
    this.#read = read
  }

  /** Without a byte order mark, and LF for CR LF; `end` counts the bytes up to the end of the piece. */
  *pieces(): Generator<{ text: string; end: number }, void, void> {
    for (let [i, at] = [0, 0]; at < this.size; i++) {
      const bytes = this.#read(at, Math.min(pieceBytes, this.size - at))
      const end = at + bytes.length < this.size ? borderIn(bytes) : bytes.length
      const piece = bytes.subarray(0, end)
      this.#check(piece, i)
      at += end
      yield { text: this.#decoded(piece, at === end).replaceAll('\r\n', '\n'), end: at }
    }
  }

  #check(piece: Uint8Array, i: number): void {
    if (piece.length === 0) utils.fail('FILE_FORMAT', this.#op, `${this.path} ended while it was read`)
    if (piece.includes(0))
      utils.fail('FILE_FORMAT', this.#op, `${this.path} is not a text file: it contains a zero byte`)
    const digest = createHash('sha256').update(piece).digest('base64')
    this.#digests[i] ??= digest
    if (this.#digests[i] !== digest) utils.fail('FILE_FORMAT', this.#op, `${this.path} changed while it was read`)
  }

  #decoded(piece: Uint8Array, first: boolean): string {
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: !first }).decode(piece)
    } catch {
      utils.fail('FILE_FORMAT', this.#op, `${this.path} is not valid UTF-8`)
    }
  }
}

/** Where a piece may end: before its last character, and not between CR CR LF. */
function borderIn(bytes: Uint8Array): number {
  let end = bytes.length - 1
  while (end > bytes.length - 4 && (bytes[end] & 0xc0) === 0x80) end--
  for (let i = 0; i < 2 && bytes[end - 1] === carriageReturn; i++) end--
  return end
}

/** A text in memory, in one array or several. */
export function textIn(op: string, path: string, bytes: Uint8Array | readonly Uint8Array[]): TextFile[] {
  const chunks = bytes instanceof Uint8Array ? [bytes] : bytes
  const size = chunks.reduce((sum, { length }) => sum + length, 0)
  const read: Read = (position, count) => {
    const part = new Uint8Array(count)
    let start = -position
    for (const chunk of chunks) {
      const [from, to] = [Math.max(0, -start), Math.min(chunk.length, count - start)]
      if (from < to) part.set(chunk.subarray(from, to), start + from)
      start += chunk.length
    }
    return part
  }
  return checkSize(op, path, [new TextFile(op, path, size, read)])
}

/** The text file at a path; of a folder, all below it in the order of their paths, without names that begin with a dot. */
export function textAt(op: string, path: string): TextFile[] {
  const files = (isFolder(utils.checkPath(op, path)) ? namesIn(op, path).map((name) => join(path, name)) : [path]).map(
    (file) => {
      const read: Read = (position, count) => utils.within(op, () => utils.readFilePartSync(file, position, count))
      read(0, 0) // refuses what is no regular file
      return new TextFile(op, file, statSync(file).size, read)
    },
  )
  if (files.length === 0) utils.fail('FILE_FORMAT', op, `${path} is a folder without files: it must hold text files`)
  return checkSize(op, path, files)
}

/** False for what cannot be asked: reading it tells why. */
function isFolder(path: string): boolean {
  try {
    return statSync(path).isDirectory()
  } catch {
    return false
  }
}

/** With `/`, so that the order is the same on every system. */
function namesIn(op: string, folder: string): string[] {
  const below = (name: string): string[] => {
    const entries = readdirSync(join(folder, name), { withFileTypes: true })
    return entries
      .filter((entry) => !entry.name.startsWith('.'))
      .flatMap((entry) => {
        const path = name === '' ? entry.name : `${name}/${entry.name}`
        return entry.isDirectory() ? below(path) : [path]
      })
  }
  try {
    return below('').sort()
  } catch (cause) {
    throw new MoeError('FILE_SYSTEM', op, `cannot read ${folder}: ${(cause as Error).message}`, { cause })
  }
}

function checkSize(op: string, path: string, files: TextFile[]): TextFile[] {
  const size = files.reduce((sum, file) => sum + file.size, 0)
  if (size > maxTextBytes)
    utils.fail(
      'FILE_FORMAT',
      op,
      `${path} has ${size} bytes, at most ${maxTextBytes} are allowed: train on a part of it`,
    )
  return files
}
