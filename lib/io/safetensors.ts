import { types } from 'node:util'
import type { StateDict } from '../nn/state.js'
import { checkOptions, checkPath, copyArray, fail } from '../runtime/check.js'
import { allocated } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { writeAtomic, writeAtomicSync } from './atomic.js'
import { run, runSync } from './files.js'
import { contentsIn, encode, load, loadBytes, type Names } from './tensor-file.js'

/** The content of a safetensors file. */
export interface LoadedTensors {
  /** On the CPU, in file order; they belong to the surrounding scope, or live until disposed. */
  tensors: StateDict
  /** The entry `__metadata__` of the header, by default {}. */
  metadata: Record<string, string>
}

/** Options of {@link saveSafetensors}. */
export interface SafetensorsOptions {
  /** Strings to store with the tensors. */
  metadata?: Record<string, string>
}

/** Options of {@link loadSafetensors}. */
export interface LoadSafetensorsOptions {
  /**
   * The tensors to read: their names, or a function that returns whether a name is wanted. The bytes of others are not
   * read. Default: all.
   */
  names?: readonly string[] | ((name: string) => boolean)
}

const maxNames = 200_000

function namesOf(op: string, options: unknown): Names {
  const { names } = checkOptions<LoadSafetensorsOptions>(op, options, ['names'])
  if (names === undefined) return null
  if (typeof names === 'function')
    return (name) => {
      const answer: unknown = names(name)
      if (typeof answer === 'boolean') return answer
      return fail('OPTION', op, `names must return true or false, got ${show(answer)} for ${show(name)}`)
    }
  if (!Array.isArray(names)) fail('OPTION', op, `names must be an array or a function, got ${show(names)}`)
  return copyArray(op, 'names', names, maxNames).map((name, i) =>
    typeof name === 'string' ? name : fail('OPTION', op, `names[${i}] must be a string, got ${show(name)}`),
  )
}

const metadataOf = (op: string, options: unknown): Record<string, string> =>
  checkMetadata(op, checkOptions<SafetensorsOptions>(op, options, ['metadata']).metadata)

export function checkMetadata(op: string, metadata: unknown = {}): Record<string, string> {
  if (typeof metadata !== 'object' || metadata === null)
    fail('OPTION', op, `metadata must be an object of strings, got ${show(metadata)}`)
  const entries = Object.entries(metadata)
  for (const [key, value] of entries) {
    if (typeof value !== 'string') fail('OPTION', op, `metadata[${show(key)}] must be a string, got ${show(value)}`)
  }
  return Object.fromEntries(entries)
}

/**
 * Writes tensors of any device to a safetensors file, which PyTorch can read, atomically: a temporary file in the same
 * folder, then a rename. Errors: OPTION, DISPOSED, FILE_SYSTEM.
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
  writeAtomicSync(checkPath(op, path), encode(op, state, metadataOf(op, options)).parts, op)
}

/**
 * Like {@link saveSafetensorsSync}; copies the values before the first await.
 *
 * @example
 * ```ts
 * const layer = new Linear(8, 4)
 * await saveSafetensors('linear.safetensors', layer.stateDict())
 * ```
 */
export async function saveSafetensors(path: string, state: StateDict, options?: SafetensorsOptions): Promise<void> {
  const op = 'saveSafetensors'
  await writeAtomic(checkPath(op, path), [...encode(op, state, metadataOf(op, options)).parts], op)
}

/**
 * Reads a safetensors file. Checks the whole header before it allocates data: a truncated or hostile file is a
 * FILE_FORMAT error. I8, U8, I16, U16, I64 and BOOL tensors become i32; an I64 value out of range is an error, as is a
 * tensor of another type that `names` does not leave out. Other errors: STATE_DICT if a name of a list is missing,
 * OPTION, OUT_OF_MEMORY, FILE_SYSTEM.
 *
 * @example
 * ```ts
 * saveSafetensorsSync('linear.safetensors', new Linear(8, 4).stateDict())
 * const { tensors } = loadSafetensorsSync('linear.safetensors')
 * console.log([tensors.weight]) // → [ Tensor([4, 8], f32, cpu) ]
 * new Linear(8, 4).loadStateDict(tensors)
 * const part = loadSafetensorsSync('linear.safetensors', { names: ['bias'] }).tensors
 * console.log(Object.keys(part)) // → [ 'bias' ]
 * ```
 */
export function loadSafetensorsSync(path: string, options?: LoadSafetensorsOptions): LoadedTensors {
  const op = 'loadSafetensors'
  return runSync(load(op, path, namesOf(op, options)))
}

/**
 * Like {@link loadSafetensorsSync}, without blocking on the disk.
 *
 * @example
 * ```ts
 * await saveSafetensors('linear.safetensors', new Linear(8, 4).stateDict())
 * const { tensors } = await loadSafetensors('linear.safetensors')
 * console.log(Object.keys(tensors).sort()) // → [ 'bias', 'weight' ]
 * const part = await loadSafetensors('linear.safetensors', { names: (name) => name.startsWith('w') })
 * console.log(Object.keys(part.tensors)) // → [ 'weight' ]
 * ```
 */
export async function loadSafetensors(path: string, options?: LoadSafetensorsOptions): Promise<LoadedTensors> {
  const op = 'loadSafetensors'
  return run(load(op, path, namesOf(op, options)))
}

/** What the header of a safetensors file says of a tensor. */
export interface TensorInfo {
  /** The type in the file, such as `F32` or `I64`; `int8` of one with scales. */
  dtype: string
  /** Its shape. */
  shape: readonly number[]
  /** Its size in the file. */
  bytes: number
}

/** The header of a safetensors file. */
export interface SafetensorsHeader {
  /** By name, in file order. */
  tensors: Record<string, TensorInfo>
  /** The entry `__metadata__`, by default {}. */
  metadata: Record<string, string>
}

/**
 * What a safetensors file holds, without reading its tensors. Checks that the header accounts for the whole file.
 * Errors: FILE_FORMAT, FILE_SYSTEM, OPTION.
 *
 * @example
 * ```ts
 * saveSafetensorsSync('linear.safetensors', new Linear(8, 4).stateDict())
 * const { tensors } = readSafetensorsHeaderSync('linear.safetensors')
 * console.log(tensors.weight) // → { dtype: 'F32', shape: [ 4, 8 ], bytes: 128 }
 * ```
 */
export function readSafetensorsHeaderSync(path: string): SafetensorsHeader {
  const op = 'readSafetensorsHeader'
  return runSync(contentsIn(op, checkPath(op, path)))
}

/**
 * The bytes of a safetensors file, to send to another thread or machine. They have a buffer of their own, which
 * `postMessage` can move. Errors: OPTION, DISPOSED, OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * const bytes = encodeSafetensors(new Linear(8, 4).stateDict())
 * console.log(bytes.byteLength) // → 280
 * new Linear(8, 4).loadStateDict(decodeSafetensors(bytes).tensors)
 * ```
 */
export function encodeSafetensors(state: StateDict, options?: SafetensorsOptions): Uint8Array {
  const op = 'encodeSafetensors'
  const { size, parts } = encode(op, state, metadataOf(op, options))
  const bytes = allocated(op, `${size} bytes`, () => new Uint8Array(size))
  let at = 0
  for (const part of parts) {
    bytes.set(part, at)
    at += part.length
  }
  return bytes
}

/**
 * Reads the bytes of a safetensors file as {@link loadSafetensorsSync} reads the file; it keeps none of them. Errors:
 * OPTION, FILE_FORMAT, STATE_DICT, OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * const bytes = encodeSafetensors({ x: ones([3]) }, { metadata: { step: '1000' } })
 * const { tensors, metadata } = decodeSafetensors(bytes)
 * console.log([tensors.x], metadata) // → [ Tensor([3], f32, cpu) ] { step: '1000' }
 * ```
 */
export function decodeSafetensors(bytes: Uint8Array, options?: LoadSafetensorsOptions): LoadedTensors {
  const op = 'decodeSafetensors'
  if (!types.isUint8Array(bytes)) fail('OPTION', op, `bytes must be a Uint8Array, got ${show(bytes)}`)
  return runSync(loadBytes(op, bytes, namesOf(op, options)))
}
