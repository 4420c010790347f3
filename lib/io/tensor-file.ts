import { types } from 'node:util'
import type { StateDict } from '../nn/state.js'
import { checkPath, fail, listed, showName, sizeOf } from '../runtime/check.js'
import { allocateArray, allocated, type DType, dtypeCode, dtypeSize, isBlocked } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { checkTensor, markLasting, type Tensor, wrap } from '../tensor/tensor.js'
import { blockedFrom, joinBlocked, type Piece, piecesOf, withFormats } from './blocked.js'
import { type Routine, readAll, reading } from './files.js'
import { type Header, readHeader, readLength, type TensorEntry, writeHeader } from './header.js'
import type { LoadedTensors, SafetensorsHeader } from './safetensors.js'

/**
 * The safetensors format: the u64 length of the header, a JSON header, then the bytes of the tensors without gaps. I8,
 * U8, I16, U16, I64 and BOOL tensors become i32; an I64 value out of range is an error. Those of weights in int8: blocked.ts.
 */

const fileTypes = { f32: 'F32', f64: 'F64', bf16: 'BF16', f16: 'F16', i32: 'I32' } as const
const ownTypes = Object.fromEntries(Object.entries(fileTypes).map(([own, file]) => [file, own as DType])) as Partial<
  Record<string, DType>
>
/** Types that become i32, and what holds them. */
const integers = {
  ...{ BOOL: Uint8Array, U8: Uint8Array, I8: Int8Array, U16: Uint16Array, I16: Int16Array },
  I64: BigInt64Array,
}
const isInteger = (type: string): type is keyof typeof integers => Object.hasOwn(integers, type)

// ---- writing

/** A file that is made as it is written: header, then a copy of each tensor in its turn, so that one is in memory at a time. */
export interface Encoded {
  size: number
  parts: Iterable<Uint8Array>
}

/** Checks the tensors now. They must not change until their copies are made. */
export function encode(op: string, state: StateDict, metadata: Record<string, string>): Encoded {
  if (typeof state !== 'object' || state === null)
    fail('OPTION', op, `state must be an object of tensors, got ${show(state)}`)
  const tensors = Object.entries(state).map(
    ([name, value]) => [name, checkTensor(op, `state[${show(name)}]`, value)] as const,
  )
  const pieces = tensors.flatMap(([name, tensor]) =>
    isBlocked(tensor.dtype) ? piecesOf(op, name, tensor) : [pieceOf(name, tensor)],
  )
  // Largest element size first, as in the reference implementation, which aligns every tensor.
  const sizeOfElement = ({ type }: Piece): number => dtypeSize(ownTypes[type] ?? 'int8')
  pieces.sort((a, b) => sizeOfElement(b) - sizeOfElement(a) || (a.name < b.name ? -1 : 1))
  let end = 0
  const entries = pieces.map(({ name, type, shape, bytes }) => {
    const begin = end
    end += bytes
    return { name, dtype: type, shape, begin, end }
  })
  const blocked = tensors.flatMap(([name, { dtype }]) => (isBlocked(dtype) ? [name] : []))
  const header = writeHeader(op, {
    entries,
    metadata: withFormats(op, metadata, blocked, (name) => Object.hasOwn(state, name)),
  })
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  function* parts(): Generator<Uint8Array> {
    yield length
    yield header
    for (const { read } of pieces) yield read()
  }
  return { size: 8 + header.length + end, parts: { [Symbol.iterator]: parts } }
}

const pieceOf = (name: string, tensor: Tensor): Piece => ({
  name,
  type: fileTypes[tensor.dtype as keyof typeof fileTypes],
  shape: tensor.shape,
  bytes: tensor.size * dtypeSize(tensor.dtype),
  read: () => new Uint8Array(tensor.dataSync().buffer),
})

// ---- reading

/** Bytes per read of several small tensors, because one call per tensor would be slow. */
const groupBytes = 2 ** 20

/** Names of tensors to read: a list, of which none may be missing, or a test; null for all. */
export type Names = readonly string[] | ((name: string) => boolean) | null

/** Reads a file on behalf of `op`: all of its tensors, or those with these names. */
export const load = (op: string, path: unknown, names: Names = null): Routine<LoadedTensors> => {
  const checked = checkPath(op, path)
  return reading(op, checked, (file, size) => readTensors(op, onDisk(op, checked, file, size), names))
}

/** The same of bytes in memory. */
export const loadBytes = (op: string, bytes: Uint8Array, names: Names): Routine<LoadedTensors> =>
  readTensors(op, inMemory(bytes), names)

/** The header of a file: its metadata, and what it says of its tensors. */
export const headerIn = (op: string, path: string): Routine<Header> =>
  reading(op, path, (file, size) => headerOf(op, onDisk(op, path, file, size)))

/** The same by name, with the bytes of each tensor. */
export function* contentsIn(op: string, path: string): Routine<SafetensorsHeader> {
  const { entries, metadata } = yield* headerIn(op, path)
  const bytesOf = ({ begin, end }: { begin: number; end: number }) => end - begin
  const tensors = entries.map((entry) => {
    const { name, dtype, shape, scales } = entry
    return scales
      ? [name, { dtype: 'int8', shape, bytes: bytesOf(entry) + bytesOf(scales) }]
      : [name, { dtype, shape, bytes: bytesOf(entry) }]
  })
  return { tensors: Object.fromEntries(tensors), metadata }
}

/** Whether tensors of this type of the format are written in the type in which they were read. */
export const keepsType = (type: string): boolean => Object.hasOwn(ownTypes, type)

/** What holds the bytes of a file. */
interface Source {
  /** For errors. */
  path: string
  size: number
  read(position: number, length: number): Routine<Buffer>
}

const onDisk = (op: string, path: string, file: number, size: number): Source => ({
  path,
  size,
  *read(position, length) {
    const bytes = allocated(op, `${length} bytes`, () => Buffer.from(new ArrayBuffer(length)))
    if (!(yield* readAll(file, bytes, position))) fail('FILE_FORMAT', op, `${path}: the file ended while it was read`)
    return bytes
  },
})

function inMemory({ buffer, byteOffset, byteLength }: Uint8Array): Source {
  // A buffer that was moved away cannot be viewed.
  const bytes = byteLength > 0 ? Buffer.from(buffer, byteOffset, byteLength) : Buffer.alloc(0)
  return {
    path: 'bytes',
    size: bytes.length,
    // biome-ignore lint/correctness/useYield: there is nothing to wait for
    *read(position, length) {
      const part = bytes.subarray(position, position + length)
      return types.isSharedArrayBuffer(buffer) ? Buffer.from(part) : part // other threads may write to it
    },
  }
}

/** The checked header, and where the data starts. */
function* headerOf(op: string, { path, size, read }: Source): Routine<Header & { start: number }> {
  if (size < 8) fail('FILE_FORMAT', op, `${path}: a safetensors file has at least 8 bytes, this has ${size}`)
  const length = readLength(op, path, yield* read(0, 8), size)
  const start = 8 + length
  return { ...joinBlocked(op, path, readHeader(op, path, yield* read(8, length), size - start)), start }
}

/** Checks the whole header before it reads the first tensor. */
function* readTensors(op: string, source: Source, names: Names): Routine<LoadedTensors> {
  const { entries, metadata, start } = yield* headerOf(op, source)
  const wanted = chosen(op, source.path, entries, names)
  for (const { name, dtype } of wanted) checkType(op, source.path, name, dtype)
  const tensors: [name: string, tensor: Tensor][] = []
  let complete = false
  try {
    for (const group of groups(wanted)) {
      const { begin, scales } = group[0]
      const bytes = yield* source.read(start + begin, group[group.length - 1].end - begin)
      const more = scales ? yield* source.read(start + scales.begin, scales.end - scales.begin) : null
      for (const entry of group) {
        const own = bytes.subarray(entry.begin - begin, entry.end - begin)
        const tensor = more ? blockedFrom(op, entry, own, more) : decode(op, source.path, entry, own)
        markLasting(tensor)
        tensors.push([entry.name, tensor])
      }
    }
    complete = true
    return { tensors: Object.fromEntries(tensors), metadata }
  } finally {
    if (!complete) for (const [, tensor] of tensors) tensor.dispose()
  }
}

function chosen(op: string, path: string, entries: readonly TensorEntry[], names: Names): readonly TensorEntry[] {
  if (names === null) return entries
  if (typeof names === 'function') return entries.filter(({ name }) => names(name))
  const missing = new Set(names)
  const found = entries.filter(({ name }) => missing.delete(name))
  if (missing.size > 0) fail('STATE_DICT', op, `${path} does not hold:${listed([...missing].map(showName))}`)
  return found
}

function checkType(op: string, path: string, name: string, dtype: string): void {
  if (keepsType(dtype) || isInteger(dtype)) return
  const supported = [...Object.keys(ownTypes), ...Object.keys(integers)].join(', ')
  fail(
    'FILE_FORMAT',
    op,
    `${path}: tensor ${show(name)} has dtype ${show(dtype)}, which cannot be read: ${supported} can`,
  )
}

/** Tensors that are read together: their bytes follow each other. One with scales is read alone. */
function* groups(entries: readonly TensorEntry[]): Iterable<TensorEntry[]> {
  for (let at = 0, end = 0; at < entries.length; at = end) {
    do end++
    while (
      end < entries.length &&
      !entries[at].scales &&
      !entries[end].scales &&
      entries[end].begin === entries[end - 1].end &&
      entries[end].end - entries[at].begin <= groupBytes
    )
    yield entries.slice(at, end)
  }
}

function decode(op: string, path: string, entry: TensorEntry, bytes: Uint8Array): Tensor {
  const { shape } = entry
  const dtype = ownTypes[entry.dtype] ?? 'i32'
  const data = isInteger(entry.dtype) ? asInt32(op, path, entry, entry.dtype, bytes) : bytes
  return wrap(native.fromData(data, dtypeCode(dtype), shape, 0), { shape, dtype, device: 'cpu' })
}

function asInt32(
  op: string,
  path: string,
  { name, shape }: TensorEntry,
  type: keyof typeof integers,
  bytes: Uint8Array,
): Int32Array {
  const data = allocateArray(op, 'i32', sizeOf(shape))
  const Integers = integers[type]
  const aligned = bytes.byteOffset % Integers.BYTES_PER_ELEMENT === 0 ? bytes : new Uint8Array(bytes)
  const values = new Integers(aligned.buffer as ArrayBuffer, aligned.byteOffset, sizeOf(shape))
  if (values instanceof BigInt64Array) toInt32(op, path, name, values, data)
  else data.set(values)
  return data
}

function toInt32(op: string, path: string, name: string, values: BigInt64Array, data: { [i: number]: number }): void {
  for (const [i, value] of values.entries()) {
    if (value !== BigInt.asIntN(32, value))
      fail('FILE_FORMAT', op, `${path}: tensor ${show(name)} holds ${value}, which does not fit i32`)
    data[i] = Number(value)
  }
}
