import { fail, sameShape, showShape, sizeOf } from '../runtime/check.js'
import { allocated, dtypeCode, scalesAt, scalesShape } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import type { Header, TensorEntry } from './header.js'

/**
 * Tensors in int8 in a file: the integers as I8 under the name of the tensor, its scales as F16 under that name and
 * `.scales`, and an entry of the metadata that names the tensors. Without that entry the integers are a tensor like others.
 */

const entryOfFormats = 'st_moe.formats'
const scalesOf = (name: string): string => `${name}.scales`

/** The memory of a blocked tensor, or what will be it. */
const memoryOf = (
  op: string,
  shape: readonly number[],
): { all: Uint8Array; levels: Uint8Array; scales: Uint8Array } => {
  const size = sizeOf(shape)
  const at = scalesAt(size)
  const end = size === 0 ? 0 : at + 2 * sizeOf(scalesShape(shape))
  const all = allocated(op, `${end} bytes`, () => new Uint8Array(end))
  return { all, levels: all.subarray(0, size), scales: all.subarray(at) }
}

/** A tensor of the file. */
export interface Piece {
  name: string
  type: string
  shape: readonly number[]
  bytes: number
  read(): Uint8Array
}

/** What a file holds of a blocked tensor. */
export function piecesOf(op: string, name: string, tensor: Tensor): [scales: Piece, levels: Piece] {
  const { shape, size } = tensor
  const read = () => {
    const memory = memoryOf(op, shape)
    native.toData(handleOf(tensor), memory.all)
    return memory
  }
  const scales = size === 0 ? shape : scalesShape(shape)
  return [
    { name: scalesOf(name), type: 'F16', shape: scales, bytes: 2 * sizeOf(scales), read: () => read().scales },
    { name, type: 'I8', shape, bytes: size, read: () => read().levels },
  ]
}

/** The metadata of a file with such tensors. Errors: OPTION if a tensor has a name that scales need. */
export function withFormats(
  op: string,
  metadata: Record<string, string>,
  blocked: readonly string[],
  names: (name: string) => boolean,
): Record<string, string> {
  const taken = blocked.find((name) => names(scalesOf(name)))
  if (taken !== undefined)
    fail('OPTION', op, `${show(scalesOf(taken))} must not be a tensor, it is the name of the scales of ${show(taken)}`)
  const { [entryOfFormats]: _, ...others } = metadata
  if (blocked.length === 0) return others
  return { ...others, [entryOfFormats]: JSON.stringify(Object.fromEntries(blocked.map((name) => [name, 'int8']))) }
}

/** The header with blocked tensors as one entry each, and without the metadata of them. Errors: FILE_FORMAT. */
export function joinBlocked(op: string, path: string, header: Header): Header {
  const { [entryOfFormats]: formats, ...metadata } = header.metadata
  if (formats === undefined) return header
  const malformed = (text: string): never => fail('FILE_FORMAT', op, `${path}: ${text}`)
  const entries = new Map(header.entries.map((entry) => [entry.name, entry]))
  for (const [name, format] of formatsIn(formats) ?? malformed(`${entryOfFormats} is not an object in JSON`)) {
    const [levels, scales] = [entries.get(name), entries.get(scalesOf(name))]
    if (format !== 'int8') malformed(`tensor ${show(name)} has the format ${show(format)}; int8 is known`)
    if (levels?.dtype !== 'I8' || scales?.dtype !== 'F16')
      return malformed(
        `tensor ${show(name)} in int8 needs I8 of that name, and F16 of the name ${show(scalesOf(name))}`,
      )
    const shape = sizeOf(levels.shape) === 0 ? levels.shape : scalesShape(levels.shape)
    if (levels.shape.length === 0 || !sameShape(scales.shape, shape))
      malformed(`the scales of ${show(name)} ${showShape(levels.shape)} have shape ${showShape(scales.shape)}`)
    entries.delete(scales.name)
    entries.set(name, { ...levels, scales: { begin: scales.begin, end: scales.end } })
  }
  return { entries: [...entries.values()], metadata }
}

function formatsIn(text: string): [name: string, format: unknown][] | null {
  try {
    const formats: unknown = JSON.parse(text)
    return typeof formats === 'object' && formats !== null ? Object.entries(formats) : null
  } catch {
    return null
  }
}

/** The tensor of an entry with scales. */
export function blockedFrom(op: string, { shape }: TensorEntry, levels: Uint8Array, scales: Uint8Array): Tensor {
  const memory = memoryOf(op, shape)
  memory.levels.set(levels)
  memory.scales.set(scales)
  return wrap(native.fromData(memory.all, dtypeCode('int8'), shape, 0), { shape, dtype: 'int8', device: 'cpu' })
}
