import { checkOptions, fail, sizeOf } from '../check.js'
import { allocateArray, type DType, dtypeCode, dtypeSize } from '../dtype.js'
import { MoeError, show } from '../errors.js'
import { native } from '../native.js'
import type { StateDict } from '../nn/module.js'
import { checkTensor, type Tensor, wrap } from '../tensor.js'
import { writeAtomic, writeAtomicSync } from './atomic.js'
import { checkPath, type Routine, readAll, reading, run, runSync } from './files.js'

/**
 * The safetensors format: u64 length of the header, a JSON header, then the tensors' bytes, contiguous and in order.
 * Tensors of I64, U8 and BOOL in a file come as i32 (I64 only where the values fit).
 */

/** What a safetensors file holds. */
export interface LoadedTensors {
  /** On the CPU, in the order of the file; they live in the surrounding scope, or until disposed. */
  tensors: StateDict
  /** The entry `__metadata__` of the header, {} where there is none. */
  metadata: Record<string, string>
}

/** Options of {@link saveSafetensors}. */
export interface SafetensorsOptions {
  /** Strings to keep beside the tensors. */
  metadata?: Record<string, string>
}

interface Entry {
  name: string
  dtype: string
  shape: number[]
  begin: number
  end: number
}

const fileTypes: Record<DType, string> = { f32: 'F32', f64: 'F64', bf16: 'BF16', f16: 'F16', i32: 'I32' }
const bytesOf: Record<string, number> = { F32: 4, F64: 8, BF16: 2, F16: 2, I32: 4, I64: 8, U8: 1, BOOL: 1 }
const maxHeader = 100_000_000

// ---- writing

/** Header and tensors as the parts of a file; copies are taken here, so later changes do not matter. */
function encode(op: string, state: StateDict, options: unknown): Uint8Array[] {
  const { metadata } = checkOptions<SafetensorsOptions>(op, options, ['metadata'])
  if (typeof state !== 'object' || state === null)
    fail('OPTION', op, `state must be an object of tensors, got ${show(state)}`)
  const entries = Object.entries(state).map(
    ([name, value]) => [name, checkTensor(op, `state[${show(name)}]`, value)] as const,
  )
  // Widest types first, as the reference writer does: every tensor is then aligned to its own size.
  entries.sort(([a, x], [b, y]) => dtypeSize(y.dtype) - dtypeSize(x.dtype) || (a < b ? -1 : 1))
  const header: Record<string, unknown> = Object.create(null)
  if (metadata !== undefined) header.__metadata__ = checkMetadata(op, metadata)
  let offset = 0
  for (const [name, tensor] of entries) {
    if (name === '__metadata__') fail('OPTION', op, 'a tensor must not be called __metadata__')
    const end = offset + tensor.size * dtypeSize(tensor.dtype)
    header[name] = { dtype: fileTypes[tensor.dtype], shape: tensor.shape, data_offsets: [offset, end] }
    offset = end
  }
  const json = Buffer.from(JSON.stringify(header))
  const padded = Buffer.alloc(Math.ceil(json.length / 8) * 8, ' ')
  json.copy(padded)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(padded.length))
  return [length, padded, ...entries.map(([, tensor]) => new Uint8Array(tensor.dataSync().buffer))]
}

function checkMetadata(op: string, metadata: unknown): Record<string, string> {
  if (typeof metadata !== 'object' || metadata === null)
    fail('OPTION', op, `metadata must be an object of strings, got ${show(metadata)}`)
  for (const [key, value] of Object.entries(metadata)) {
    if (typeof value !== 'string') fail('OPTION', op, `metadata.${key} must be a string, got ${show(value)}`)
  }
  return metadata as Record<string, string>
}

/**
 * Writes tensors to a safetensors file that PyTorch can read: a temporary file in the same folder, then a rename, so it
 * appears whole or not at all. Tensors of any device. Errors: OPTION, DISPOSED, FILE_SYSTEM.
 *
 * @example
 * ```ts
 * const layer = new Linear(8, 4)
 * saveSafetensorsSync('linear.safetensors', layer.stateDict(), { metadata: { step: '1000' } })
 * console.log(loadSafetensorsSync('linear.safetensors').metadata) // → { step: '1000' }
 * ```
 */
export function saveSafetensorsSync(path: string, state: StateDict, options?: SafetensorsOptions): void {
  const op = 'saveSafetensors'
  writeAtomicSync(checkPath(op, path), encode(op, state, options), op)
}

/**
 * As {@link saveSafetensorsSync}; the values are copied before the first await.
 *
 * @example
 * ```ts
 * const layer = new Linear(8, 4)
 * await saveSafetensors('linear.safetensors', layer.stateDict())
 * ```
 */
export async function saveSafetensors(path: string, state: StateDict, options?: SafetensorsOptions): Promise<void> {
  const op = 'saveSafetensors'
  await writeAtomic(checkPath(op, path), encode(op, state, options), op)
}

// ---- reading

const malformed = (path: string, text: string): never => {
  throw new MoeError('FILE_FORMAT', 'loadSafetensors', `${path}: ${text}`)
}

function headerLength(path: string, bytes: Uint8Array, fileSize: number): number {
  const length = Buffer.from(bytes.buffer, bytes.byteOffset, 8).readBigUInt64LE()
  if (length > BigInt(maxHeader)) malformed(path, `the header claims ${length} bytes, at most ${maxHeader} are allowed`)
  if (Number(length) + 8 > fileSize) malformed(path, `the header claims ${length} bytes, the file has ${fileSize}`)
  return Number(length)
}

function parseHeader(
  path: string,
  bytes: Uint8Array,
  dataSize: number,
): { entries: Entry[]; metadata: Record<string, string> } {
  let header: unknown
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    if (!text.startsWith('{')) malformed(path, 'the header does not start with {')
    header = JSON.parse(text)
  } catch (cause) {
    if (cause instanceof MoeError) throw cause
    throw new MoeError(
      'FILE_FORMAT',
      'loadSafetensors',
      `${path}: the header is not JSON: ${(cause as Error).message}`,
      { cause },
    )
  }
  const entries: Entry[] = []
  let metadata: Record<string, string> = {}
  for (const [name, value] of Object.entries(header as object)) {
    if (name === '__metadata__') metadata = parseMetadata(path, value)
    else entries.push(parseEntry(path, name, value))
  }
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end)
  let at = 0
  for (const { name, begin, end } of entries) {
    if (begin !== at) malformed(path, `tensor ${show(name)} starts at byte ${begin}, expected ${at}`)
    at = end
  }
  if (at !== dataSize) malformed(path, `the tensors need ${at} bytes of data, the file has ${dataSize}`)
  return { entries, metadata }
}

function parseMetadata(path: string, value: unknown): Record<string, string> {
  const isStrings =
    typeof value === 'object' &&
    value !== null &&
    !Array.isArray(value) &&
    Object.values(value).every((v) => typeof v === 'string')
  if (!isStrings) malformed(path, '__metadata__ must be an object of strings')
  return { ...(value as Record<string, string>) }
}

function parseEntry(path: string, name: string, value: unknown): Entry {
  const {
    dtype,
    shape,
    data_offsets: offsets,
  } = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  const isCount = (n: unknown): n is number => Number.isSafeInteger(n) && (n as number) >= 0
  const isDimension = (n: unknown): n is number => isCount(n) && n <= 2 ** 46
  if (typeof dtype !== 'string' || !Object.hasOwn(bytesOf, dtype)) {
    malformed(path, `tensor ${show(name)} has dtype ${show(dtype)}, known are ${Object.keys(bytesOf).join(', ')}`)
  }
  if (!Array.isArray(shape) || shape.length > 8 || !shape.every(isDimension))
    malformed(path, `tensor ${show(name)} has shape ${show(shape)}`)
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount))
    malformed(path, `tensor ${show(name)} has data_offsets ${show(offsets)}`)
  const [begin, end] = offsets as number[]
  if (end - begin !== sizeOf(shape as number[]) * bytesOf[dtype as string]) {
    malformed(path, `tensor ${show(name)}: ${dtype} ${show(shape)} does not fill bytes ${begin} to ${end}`)
  }
  return { name, dtype: dtype as string, shape: shape as number[], begin, end }
}

function decode(path: string, entry: Entry, bytes: Uint8Array): Tensor {
  const { shape } = entry
  const own = (Object.keys(fileTypes) as DType[]).find((dtype) => fileTypes[dtype] === entry.dtype)
  const dtype = own ?? 'i32'
  const data = own ? allocateArray('loadSafetensors', own, sizeOf(shape)) : narrowed(path, entry, bytes)
  if (own) new Uint8Array(data.buffer).set(bytes)
  return wrap(native.fromData(data, dtypeCode(dtype), shape, 0), { shape, dtype, device: 'cpu' })
}

function narrowed(path: string, entry: Entry, bytes: Uint8Array): Int32Array {
  if (entry.dtype !== 'I64') return Int32Array.from(bytes)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return Int32Array.from({ length: bytes.byteLength / 8 }, (_, i) => {
    const value = view.getBigInt64(i * 8, true)
    if (value !== BigInt.asIntN(32, value))
      malformed(path, `tensor ${show(entry.name)} holds ${value}, which does not fit i32`)
    return Number(value)
  })
}

const load = (path: string): Routine<LoadedTensors> =>
  reading('loadSafetensors', checkPath('loadSafetensors', path), (file, size) => readTensors(path, file, size))

/** Checks the whole header before it reads the first tensor. */
function* readTensors(path: string, file: number, fileSize: number): Routine<LoadedTensors> {
  if (fileSize < 8) malformed(path, `a safetensors file has at least 8 bytes, this has ${fileSize}`)
  const length = headerLength(path, yield* readPiece(path, file, 0, 8), fileSize)
  const start = 8 + length
  const { entries, metadata } = parseHeader(path, yield* readPiece(path, file, 8, length), fileSize - start)
  const tensors: StateDict = Object.create(null)
  let complete = false
  try {
    for (const entry of entries) {
      const { begin, end } = entry
      tensors[entry.name] = decode(path, entry, yield* readPiece(path, file, start + begin, end - begin))
    }
    complete = true
    return { tensors: { ...tensors }, metadata }
  } finally {
    if (!complete) for (const tensor of Object.values(tensors)) tensor.dispose()
  }
}

function* readPiece(path: string, file: number, position: number, length: number): Routine<Uint8Array> {
  const bytes = allocateBytes(length)
  if (!(yield* readAll(file, bytes, position))) malformed(path, 'the file ended while it was read')
  return bytes
}

/**
 * Reads a safetensors file. Everything about the header is checked before a byte of data is allocated: a truncated or
 * hostile file is a FILE_FORMAT error. Tensors of I64, U8 and BOOL come as i32, I64 only where the values fit. Other
 * errors: OPTION, OUT_OF_MEMORY, FILE_SYSTEM.
 *
 * @example
 * ```ts
 * saveSafetensorsSync('linear.safetensors', new Linear(8, 4).stateDict())
 * const { tensors } = loadSafetensorsSync('linear.safetensors')
 * console.log(tensors.weight) // → Tensor([4, 8], f32, cpu)
 * new Linear(8, 4).loadStateDict(tensors)
 * ```
 */
export function loadSafetensorsSync(path: string): LoadedTensors {
  return runSync(load(path))
}

/**
 * As {@link loadSafetensorsSync}, without blocking on the disk.
 *
 * @example
 * ```ts
 * await saveSafetensors('linear.safetensors', new Linear(8, 4).stateDict())
 * const { tensors } = await loadSafetensors('linear.safetensors')
 * console.log(Object.keys(tensors).sort()) // → [ 'bias', 'weight' ]
 * ```
 */
export async function loadSafetensors(path: string): Promise<LoadedTensors> {
  return run(load(path))
}

function allocateBytes(length: number): Uint8Array {
  try {
    return new Uint8Array(length)
  } catch (cause) {
    throw new MoeError('OUT_OF_MEMORY', 'loadSafetensors', `cannot allocate ${length} bytes`, { cause })
  }
}
