import { isUtf8 } from 'node:buffer'
import { fail, sizeOf } from '../runtime/check.js'
import { allocated } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'

/**
 * The header of a safetensors file: JSON with tensors by name, and strings under `__metadata__`. Reads and writes share
 * the same limits, which are far above what models need. Together with a parser for exactly this grammar, they limit a
 * header to two seconds and 1 GB of memory.
 */
export interface Header {
  /** In the order of their data. */
  entries: TensorEntry[]
  metadata: Record<string, string>
}

export interface TensorEntry {
  name: string
  dtype: string
  shape: readonly number[]
  /** Byte range in the data. */
  begin: number
  end: number
  /** The same of the scales of a tensor in blocks. */
  scales?: { begin: number; end: number }
}

/** Bits per element of the types of the format. A type that later versions add is passed over, its size unchecked. */
const bitsOf: Readonly<Record<string, number>> = {
  ...{ BOOL: 8, U8: 8, I8: 8, U16: 16, I16: 16, U32: 32, I32: 32, U64: 64, I64: 64 },
  ...{ F16: 16, BF16: 16, F32: 32, F64: 64, C64: 64, F4: 4, F6_E2M3: 6, F6_E3M2: 6 },
  ...{ F8_E5M2: 8, F8_E4M3: 8, F8_E8M0: 8, F8_E4M3FNUZ: 8, F8_E5M2FNUZ: 8 },
}

/** The limit of the reference implementation. */
export const maxHeader = 100_000_000
const maxTensors = 200_000
const maxMetadata = 2 ** 16
const maxRank = 8
/** Of a dimension, and of the product of the first ones. */
const maxSize = 2 ** 46

const metadataName = '__metadata__'
const hasLoneSurrogate = (text: string): boolean => /\p{Surrogate}/u.test(text)

// ---- writing

/** The JSON of a header, padded to a multiple of 8 bytes. Errors: OPTION for a header that could not be read again. */
export function writeHeader(op: string, { entries, metadata }: Header): Buffer {
  const strings = Object.entries(metadata)
  checkCount(op, 'tensors', entries.length, maxTensors)
  checkCount(op, 'entries of metadata', strings.length, maxMetadata)
  const json = new Json(op)
  const members = strings.map(([key, value]) => `${json.string('metadata', key)}:${json.string('metadata', value)}`)
  const parts = strings.length > 0 ? [`"${metadataName}":{${members.join()}}`] : []
  for (const { name, dtype, shape, begin, end } of entries) {
    if (name === metadataName) fail('OPTION', op, `a tensor must not be called ${metadataName}`)
    parts.push(`${json.string('names', name)}:{"dtype":"${dtype}","shape":[${shape}],"data_offsets":[${begin},${end}]}`)
  }
  const bytes = allocated(op, 'a header', () => Buffer.from(`{${parts.join()}}`))
  const length = Math.ceil(bytes.length / 8) * 8
  if (length > maxHeader) tooLong(op)
  const padded = allocated(op, 'a header', () => Buffer.alloc(length, ' '))
  bytes.copy(padded)
  return padded
}

const tooLong = (op: string): never => fail('OPTION', op, `names and metadata exceed a header of ${maxHeader} bytes`)

function checkCount(op: string, what: string, count: number, max: number): void {
  if (count > max) fail('OPTION', op, `a file holds at most ${max} ${what}, got ${count}`)
}

/** Strings as JSON, with the total length of a header at most. */
class Json {
  #length = 0
  readonly #op: string

  constructor(op: string) {
    this.#op = op
  }

  string(what: string, text: string): string {
    if (this.#length + text.length > maxHeader) tooLong(this.#op)
    if (hasLoneSurrogate(text))
      fail('OPTION', this.#op, `${what} must be valid Unicode, got ${show(text)} with half of a surrogate pair`)
    const json = quoted(text)
    if (json === null) return tooLong(this.#op)
    this.#length += json.length
    return json
  }
}

/** Null if its escapes exceed the maximum length of a string. */
function quoted(text: string): string | null {
  try {
    return JSON.stringify(text)
  } catch {
    return null
  }
}

// ---- reading

/** Parses and checks a header: the tensors fill `dataSize` bytes without gaps. Errors: FILE_FORMAT. */
export function readHeader(op: string, path: string, bytes: Buffer, dataSize: number): Header {
  const malformed = (text: string): never => fail('FILE_FORMAT', op, `${path}: ${text}`)
  if (!isUtf8(bytes)) malformed('the header is not UTF-8')
  const scanner = new Scanner(bytes, malformed)
  const entries: TensorEntry[] = []
  const names: Record<string, true> = Object.create(null) // unlike a Set, safe from hash collisions
  let metadata: Record<string, string> | undefined
  scanner.object((name) => {
    if (name in names) malformed(`duplicate name ${show(name)}`)
    names[name] = true
    if (name === metadataName) metadata = readMetadata(scanner, malformed)
    else if (entries.length === maxTensors) malformed(`more than ${maxTensors} tensors`)
    else entries.push(readEntry(scanner, malformed, name))
  })
  scanner.end()
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end)
  let at = 0
  for (const { name, begin, end } of entries) {
    if (begin !== at) malformed(`tensor ${show(name)} starts at byte ${begin}, expected ${at}`)
    at = end
  }
  if (at !== dataSize) malformed(`the tensors need ${at} bytes of data, the file has ${dataSize}`)
  return { entries, metadata: metadata ?? {} }
}

type Malformed = (text: string) => never

function readMetadata(scanner: Scanner, malformed: Malformed): Record<string, string> {
  const metadata: Record<string, string> = Object.create(null)
  let count = 0
  scanner.object((key) => {
    if (key in metadata) malformed(`duplicate key ${show(key)} in ${metadataName}`)
    if (++count > maxMetadata) malformed(`${metadataName} has more than ${maxMetadata} entries`)
    metadata[key] = scanner.string()
  })
  return { ...metadata }
}

function readEntry(scanner: Scanner, malformed: Malformed, name: string): TensorEntry {
  let dtype: string | undefined
  let shape: number[] | undefined
  let offsets: number[] | undefined
  scanner.object((key) => {
    if (key === 'dtype' && dtype === undefined) dtype = scanner.string()
    else if (key === 'shape' && shape === undefined) shape = scanner.integers(maxRank)
    else if (key === 'data_offsets' && offsets === undefined) offsets = scanner.integers(2)
    else malformed(`tensor ${show(name)} must have dtype, shape and data_offsets, once each, got ${show(key)}`)
  })
  if (dtype === undefined) return malformed(`tensor ${show(name)} has no dtype`)
  if (!shape || !isShape(shape)) return malformed(`tensor ${show(name)} has shape ${show(shape)}`)
  if (offsets?.length !== 2) return malformed(`tensor ${show(name)} has data_offsets ${show(offsets)}`)
  const [begin, end] = offsets
  const bits = Object.hasOwn(bitsOf, dtype) ? bitsOf[dtype] : null
  if (end < begin || (bits !== null && (end - begin) * 8 !== sizeOf(shape) * bits))
    malformed(`tensor ${show(name)}: ${dtype} ${show(shape)} does not fill bytes ${begin} to ${end}`)
  return { name, dtype, shape, begin, end }
}

const isShape = (shape: readonly number[]): boolean =>
  shape.every((n, i) => n <= maxSize && sizeOf(shape.slice(0, i + 1)) <= maxSize)

const [curly, uncurly, square, unsquare, quote, backslash, colon, comma] = Buffer.from('{}[]"\\:,')
const [zero, nine, space, tab, line, carriage] = Buffer.from('09 \t\n\r')

/** Parses the subset of JSON that a header uses. */
class Scanner {
  #at = 0
  readonly #bytes: Buffer
  readonly #fail: (text: string) => never

  constructor(bytes: Buffer, malformed: Malformed) {
    this.#bytes = bytes
    this.#fail = (text) => malformed(`the header is malformed at byte ${this.#at}: expected ${text}`)
  }

  /** Calls `member` for each key; it reads the value. */
  object(member: (key: string) => void): void {
    this.#expect(curly, '{')
    if (this.#take(uncurly)) return
    do {
      const key = this.string()
      this.#expect(colon, ':')
      member(key)
    } while (this.#take(comma))
    this.#expect(uncurly, ', or }')
  }

  /** A list of integers from 0 to 2^53 − 1. */
  integers(max: number): number[] {
    const list: number[] = []
    this.#expect(square, '[')
    if (this.#take(unsquare)) return list
    do {
      if (list.length === max) this.#fail(`at most ${max} numbers`)
      list.push(this.#integer())
    } while (this.#take(comma))
    this.#expect(unsquare, ', or ]')
    return list
  }

  string(): string {
    this.#expect(quote, 'a string')
    const start = this.#at
    let escaped = false
    for (; this.#bytes[this.#at] !== quote; this.#at++) {
      if (!(this.#bytes[this.#at] >= space)) this.#fail('the end of a string')
      if (this.#bytes[this.#at] !== backslash) continue
      escaped = true
      this.#at++
    }
    const end = this.#at++
    return escaped ? this.#unescape(start, end) : this.#bytes.toString('utf8', start, end)
  }

  /** Fails unless only white space is left. */
  end(): void {
    this.#skip()
    if (this.#at < this.#bytes.length) this.#fail('its end')
  }

  #unescape(start: number, end: number): string {
    let text: string | undefined
    try {
      text = JSON.parse(this.#bytes.toString('utf8', start - 1, end + 1))
    } catch {}
    return text === undefined || hasLoneSurrogate(text) ? this.#fail('a string with valid escapes before it') : text
  }

  #integer(): number {
    this.#skip()
    const start = this.#at
    let value = 0
    for (let byte = this.#bytes[start]; byte >= zero && byte <= nine; byte = this.#bytes[++this.#at])
      value = value * 10 + (byte - zero)
    const digits = this.#at - start
    const isCanonical = digits === 1 || (digits > 1 && this.#bytes[start] !== zero)
    return isCanonical && value <= Number.MAX_SAFE_INTEGER ? value : this.#fail('an integer from 0 to 2^53 - 1')
  }

  #expect(byte: number, text: string): void {
    if (!this.#take(byte)) this.#fail(text)
  }

  /** Whether this byte is next, after white space. */
  #take(byte: number): boolean {
    this.#skip()
    if (this.#bytes[this.#at] !== byte) return false
    this.#at++
    return true
  }

  #skip(): void {
    for (;;) {
      const byte = this.#bytes[this.#at]
      if (byte !== space && byte !== line && byte !== carriage && byte !== tab) return
      this.#at++
    }
  }
}

/** The length of the header, from the first 8 bytes. */
export function readLength(op: string, path: string, bytes: Buffer, fileSize: number): number {
  const length = bytes.readBigUInt64LE()
  const claim = `${path}: the header claims ${length} bytes`
  if (length > BigInt(maxHeader)) fail('FILE_FORMAT', op, `${claim}, at most ${maxHeader} are allowed`)
  if (Number(length) + 8 > fileSize) fail('FILE_FORMAT', op, `${claim}, the file has ${fileSize}`)
  return Number(length)
}
