import { record } from '../autograd/autograd.js'
import { checkInteger, copyArray, fail, sizeOf } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import { dtypeCode, isFloat } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { optional } from '../runtime/options.js'
import { groupHandle, type ProcessGroup } from '../runtime/process-group.js'
import { checkTensor, type Tensor } from '../tensor/tensor.js'
import { reshaped, withViews } from './rows.js'

/** What the ops between processes share. Each computes on all ranks of a group, which call them in the same order. */

/**
 * Records an exchange, with the gradient of x (null if there is none) as a function of that of y. Its backward is an
 * exchange too, so it runs on every rank: also where x needs no gradient, and with zeros where y has none. The exchanges that
 * made `after` run backward after it, even if x does not depend on them.
 */
export function recordExchange(
  op: string,
  x: Tensor | null,
  y: Tensor,
  backward: (dy: Handle) => Handle,
  after: readonly Tensor[] = [],
): void {
  if (!isFloat(y.dtype)) return
  const { shape, dtype, device } = y
  const none = after.map(() => null)
  record({
    op,
    inputs: x ? [x, ...after] : [],
    outputs: [y],
    always: true,
    backward: ([given]) => {
      const zeros = { shape, dtype: dtypeCode(dtype), device: deviceIndex(op, device), value: 0 }
      const dy = given ?? native.full(zeros)
      try {
        const dx = backward(dy)
        if (x) return [dx, ...none]
        native.release(dx)
        return []
      } finally {
        if (given === null) native.release(dy)
      }
    },
  })
}

/** An option with a number of rows for each rank, which {@link countsOf} checks once the group is known. */
export const rowsByRank = optional<readonly number[]>({ check: (_op, _name, value) => value as readonly number[] })

/** The arguments of an exchange of rows, checked. */
export function rowsOf(op: string, x: Tensor, group: ProcessGroup) {
  const handle = groupHandle(op, group)
  checkTensor(op, 'x', x)
  if (x.shape.length === 0) fail('SHAPE', op, 'x must have at least one dimension, got []; reshape([1]) gives it one')
  return { group: handle, ranks: group.size, rank: group.rank, rows: x.shape[0], inner: x.shape.slice(1) }
}

/** The rows by rank that an option gives, or those of equal parts. */
export function splitsOf(op: string, name: string, given: unknown, rows: number, ranks: number): Float64Array {
  if (given === undefined) {
    if (rows % ranks !== 0)
      fail('SHAPE', op, `${rows} rows of x cannot be divided between ${ranks} ranks; pass ${name}`)
    return new Float64Array(ranks).fill(rows / ranks)
  }
  const list = countsOf(op, name, given, ranks)
  const sum = list.reduce((a, b) => a + b, 0)
  if (sum !== rows) fail('SHAPE', op, `${name} must add up to the ${rows} rows of x, got ${show([...list])}`)
  return list
}

/** A number of rows for each rank. */
export function countsOf(op: string, name: string, given: unknown, ranks: number): Float64Array {
  const list = copyArray(op, name, given as readonly number[], 2 ** 20)
  if (list.length !== ranks)
    fail('SHAPE', op, `${name} must have a number for each of ${ranks} ranks, got ${show(list)}`)
  return Float64Array.from(list, (count, i) => checkInteger(op, `${name}[${i}]`, count, 0, 2 ** 46))
}

/** The number of a group in the addon, and a rank of it that is not this one. */
export function otherRank(op: string, group: ProcessGroup, name: string, value: number): [group: number, rank: number] {
  const handle = groupHandle(op, group)
  const rank = checkInteger(op, name, value, 0, group.size - 1)
  if (rank === group.rank) fail('OPTION', op, `${name} must be another rank than this one, ${rank}`)
  return [handle, rank]
}

/** Runs an exchange of the rows of x [S, …] and returns [rows, …]. */
export function exchangeRows(
  x: Handle,
  inner: readonly number[],
  from: number,
  to: number,
  run: (rows: Handle) => Handle,
) {
  const width = sizeOf(inner)
  return reshaped(
    withViews([x], [[from, width]], ([rows]) => run(rows)),
    [to, ...inner],
  )
}

/** The sum of a list. */
export const total = (list: Float64Array): number => list.reduce((a, b) => a + b, 0)
