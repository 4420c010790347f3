import { record } from '../autograd/autograd.js'
import { checkAxis, checkBoolean, copyArray, fail, sameShape, sizeOf } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'
import { consumed, filled, share } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { reshaped, withViews } from './rows.js'
import { expand, stridesOf } from './strided.js'

/** x as [outer, axis, inner], summed over the middle; releases x, also if it throws. */
export const summed = (x: Handle, split: readonly number[], shape: readonly number[], factor: number): Handle =>
  consumed(x, () => native.reduce(x, split, shape, factor))

/** Sum over one axis; releases x. */
function sumAxis(x: Handle, shape: readonly number[], axis: number, factor: number): Handle {
  const split = [sizeOf(shape.slice(0, axis)), shape[axis], sizeOf(shape.slice(axis + 1))]
  const kept = shape.map((n, i) => (i === axis ? 1 : n))
  return summed(x, split, kept, factor)
}

/** factor · the sum over axes (those of length 1 stay); releases x. */
function sumAxes(x: Handle, shape: readonly number[], axes: readonly number[], factor: number): Handle {
  if (axes.length === 0) return x
  const ones = shape.map(() => 1)
  if (axes.length === shape.length) return summed(x, [1, sizeOf(shape), 1], ones, factor)
  let current = [...shape]
  let y = x
  for (const [i, axis] of axes.entries()) {
    // an infinite factor divides by 0: it must meet the sum over the empty axis, whichever that is
    y = sumAxis(y, current, axis, i === 0 || factor === Infinity ? factor : 1)
    current = current.map((n, j) => (j === axis ? 1 : n))
  }
  return y
}

/** Undoes broadcasting from `shape` to `target`: sums over the expanded axes. Releases x. */
export function sumTo(x: Handle, shape: readonly number[], target: readonly number[]): Handle {
  if (sameShape(shape, target)) return x
  const padded = [...Array(shape.length - target.length).fill(1), ...target]
  const axes = shape.flatMap((n, i) => (n !== padded[i] ? [i] : []))
  return reshaped(sumAxes(x, shape, axes, 1), target)
}

/** The axes that `axis` names, sorted, all if it is undefined. */
export function checkAxes(op: string, axis: unknown, rank: number): number[] {
  if (axis === undefined) return Array.from({ length: rank }, (_, i) => i)
  const list = Array.isArray(axis) ? copyArray(op, 'axis', axis, Math.max(rank, 1)) : [axis]
  const axes = list.map((entry) => checkAxis(op, entry, rank))
  if (new Set(axes).size !== axes.length) fail('OPTION', op, 'axis must not name an axis twice')
  return axes.sort((a, b) => a - b)
}

function reduce<D extends DType>(
  op: 'sum' | 'mean',
  x: Tensor<D>,
  axis?: number | readonly number[],
  keepDim = false,
): Tensor<D> {
  checkFloat(op, 'x', x)
  checkBoolean(op, 'keepDim', keepDim)
  const axes = checkAxes(op, axis, x.shape.length)
  const kept = x.shape.map((n, i) => (axes.includes(i) ? 1 : n))
  const shape = keepDim ? kept : x.shape.filter((_, i) => !axes.includes(i))
  const factor = op === 'mean' ? 1 / sizeOf(axes.map((i) => x.shape[i])) : 1
  const sum =
    axes.length === 0
      ? native.stridedRead(handleOf(x), shape, stridesOf(shape), 0) // no view: it must not change with x
      : reshaped(sumAxes(share(handleOf(x)), x.shape, axes, factor), shape)
  const y = wrap(sum, { shape, dtype: x.dtype, device: x.device })
  const { shape: full } = x
  record({
    op,
    inputs: [x],
    outputs: [y],
    backward: ([dy]) => {
      const dx = withViews([dy!], [kept], ([grad]) => expand(grad, kept, full))
      return [factor === 1 ? dx : filled(dx, () => native.scale({ x: dx, factor }))]
    },
  })
  return y
}

/**
 * Σ over all axes (shape []), one axis, or several; negative ones count from the end, `keepDim` leaves them with length
 * 1. Over no axes, `[]`, a copy of x, as in NumPy. f32 or f64; the order of addition is fixed. Errors: DTYPE, OPTION.
 *
 * @example
 * ```ts
 * const x = tensor([[1, 2], [3, 4]])
 * console.log(ops.sum(x).item(), ops.sum(x, 0).dataSync()) // → 10 Float32Array(2) [ 4, 6 ]
 * console.log(ops.sum(x, []).shape) // → [ 2, 2 ]
 * ```
 */
export const sum = <D extends DType>(x: Tensor<D>, axis?: number | readonly number[], keepDim?: boolean): Tensor<D> =>
  reduce('sum', x, axis, keepDim)
/**
 * Mean over all axes (shape []), one axis, or several, as {@link sum}. Over nothing: NaN, as 0/0.
 *
 * @example
 * ```ts
 * console.log(ops.mean(tensor([[1, 2], [3, 4]]), -1, true).shape) // → [ 2, 1 ]
 * ```
 */
export const mean = <D extends DType>(x: Tensor<D>, axis?: number | readonly number[], keepDim?: boolean): Tensor<D> =>
  reduce('mean', x, axis, keepDim)

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.sum}. */
    sum(axis?: number | readonly number[], keepDim?: boolean): Tensor<D>
    /** See {@link ops.mean}. */
    mean(axis?: number | readonly number[], keepDim?: boolean): Tensor<D>
  }
}
asMethods({ sum, mean })
