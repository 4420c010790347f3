import { scope } from '../autograd/scope.js'
import { valuesFor } from '../ops/copy.js'
import { stridesOf } from '../ops/strided.js'
import { fail, listed, sameShape, showName, showShape } from '../runtime/check.js'
import { show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { boolean, type OptionsOf, reader } from '../runtime/options.js'
import { checkTensor, handleOf, isTensor, markLasting, type Tensor, wrap } from '../tensor/tensor.js'
import type { Module } from './module.js'

/** Tensors under the names of the PyTorch package. */
export type StateDict = Record<string, Tensor>

/** What {@link Module.loadStateDict} met. */
export interface LoadReport {
  /** Names that the state lacks (only with `strict: false`). */
  missing: string[]
  /** Names of the state that the module does not know (only with `strict: false`). */
  unexpected: string[]
}

const loadOptions = {
  /** Missing and unknown names are errors. Default true. */
  strict: boolean({ default: true }),
}

/** Options of {@link Module.loadStateDict}. */
export interface LoadOptions extends OptionsOf<typeof loadOptions> {}

const readLoadOptions = reader(loadOptions)

/** One name of a state dict: a whole tensor, or slice `index` of a stacked one. */
export interface StateEntry {
  /** Under which the state dict has it. */
  name: string
  /** Where its values are. */
  tensor: Tensor
  /** Which slice of the first axis. */
  index?: number
}

export const entryShape = ({ tensor, index }: StateEntry): readonly number[] =>
  index === undefined ? tensor.shape : tensor.shape.slice(1)
const entryOffset = ({ tensor, index = 0 }: StateEntry): number => (index > 0 ? index * stridesOf(tensor.shape)[0] : 0)

/** A copy of the entry's values out of a tensor of the shape of `entry.tensor`. */
export function readEntry(op: string, entry: StateEntry, from: Tensor): Tensor {
  checkTensor(op, from === entry.tensor ? entry.name : `${entry.name}.grad`, from)
  const shape = entryShape(entry)
  const handle = native.stridedRead(handleOf(from), shape, stridesOf(shape), shape.includes(0) ? 0 : entryOffset(entry))
  const copy = wrap(handle, { shape, dtype: from.dtype, device: from.device })
  markLasting(copy)
  return copy
}

/** Errors: OPTION for two tensors of one name, of which a state could hold only one. */
export function entriesOf(op: string, module: Module): StateEntry[] {
  const entries = new Map<string, StateEntry>()
  for (const entry of module.stateEntries()) {
    if (entries.has(entry.name)) fail('OPTION', op, `two tensors of the module are named ${showName(entry.name)}`)
    entries.set(entry.name, entry)
  }
  return [...entries.values()]
}

/** Copies of all that the state of a module holds, in the surrounding scope. */
export const stateOf = (op: string, module: Module): StateDict =>
  scope(() =>
    Object.fromEntries(entriesOf(op, module).map((entry) => [entry.name, readEntry(op, entry, entry.tensor)])),
  )

/**
 * Checks a state for a module, and makes what needs memory in the surrounding scope. The function that it returns writes
 * the values, and needs none.
 */
export function stageState(
  module: Module,
  op: string,
  what: string,
  state: StateDict,
  options?: LoadOptions,
): () => LoadReport {
  const { strict } = readLoadOptions(op, options)
  if (typeof state !== 'object' || state === null)
    fail('OPTION', op, `state must be an object of tensors, got ${show(state)}`)
  const values = new Map<string, unknown>(Object.entries(state))
  const entries = entriesOf(op, module)
  const known = new Set(entries.map(({ name }) => name))
  const missing = entries.flatMap(({ name }) => (values.has(name) ? [] : [name]))
  const elsewhere = [...module.stateElsewhere()]
  const unexpected = [...values.keys()].filter(
    (name) => !known.has(name) && !elsewhere.some((begin) => name.startsWith(begin)),
  )
  const present = entries.filter(({ name }) => values.has(name))
  const problems = present.flatMap((entry) => mismatch(entry, values.get(entry.name)))
  const lists = [
    strict ? missing.map((name) => `missing: ${showName(name)}`) : [],
    strict ? unexpected.map((name) => `unexpected: ${showName(name)}`) : [],
    problems,
  ]
  if (lists.some(({ length }) => length > 0))
    fail('STATE_DICT', op, `${what} does not fit, nothing was changed:${lists.map(listed).join('')}`)
  const staged = valuesFor(present.map(({ name, tensor }) => ({ source: values.get(name) as Tensor, target: tensor })))
  return () => {
    for (const [i, entry] of present.entries()) {
      const shape = entryShape(entry)
      if (!shape.includes(0))
        native.stridedWrite(handleOf(entry.tensor), handleOf(staged[i]), stridesOf(shape), entryOffset(entry))
    }
    return { missing, unexpected }
  }
}

function mismatch(entry: StateEntry, value: unknown): string[] {
  if (!isTensor(value)) return [`mistyped: ${entry.name} must be a Tensor, got ${show(value)}`]
  if (value.disposed) return [`disposed: ${entry.name}`]
  if (entry.tensor.disposed) return [`disposed: ${entry.name} of the module itself`]
  const shape = entryShape(entry)
  if (!sameShape(value.shape, shape))
    return [`misshapen: ${entry.name} must be ${showShape(shape)}, got ${showShape(value.shape)}`]
  if (value.dtype === 'i32') return [`mistyped: ${entry.name} must be a floating-point tensor, got i32`]
  return []
}
