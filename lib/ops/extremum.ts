import { record } from '../autograd/autograd.js'
import { callScope } from '../autograd/scope.js'
import { checkBoolean, fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'
import { guarded } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { checkAxes } from './reduce.js'
import { reshape } from './reshape.js'
import { gatherGradient, reshaped, splitAt, withViews } from './rows.js'

/** Neighbouring axes from `start` to `end`, exclusive. */
interface Run {
  start: number
  end: number
}

/** Axes, which are sorted, as runs of neighbours. */
function runsOf(axes: readonly number[]): Run[] {
  const starts = axes.filter((axis) => !axes.includes(axis - 1))
  return starts.map((start) => {
    let end = start
    while (axes.includes(end)) end++
    return { start, end }
  })
}

/** The extrema of a run and where they are, both [outer, inner]. */
function extremaOf(op: string, x: Tensor, run: Run, largest: boolean): { value: Handle; index: Handle } {
  const split = splitAt(x.shape, run.start, run.end)
  if (split[1] === 0 && split[0] * split[2] > 0)
    fail('SHAPE', op, `x must have entries along axis, got ${showShape(x.shape)}`)
  return withViews([handleOf(x)], [split], ([view]) => native.extremum({ x: view, largest }))
}

/** The axes of the run stay with length 1. */
function overRun<D extends DType>(op: string, x: Tensor<D>, run: Run, largest: boolean): Tensor<D> {
  const { value, index } = extremaOf(op, x, run, largest)
  const { shape, dtype, device } = x
  const kept = shape.map((n, i) => (i >= run.start && i < run.end ? 1 : n))
  const y = guarded([index], () => wrap(reshaped(value, kept), { shape: kept, dtype, device }))
  const [outer, A, inner] = splitAt(shape, run.start, run.end)
  record({
    op,
    inputs: [x],
    outputs: [y],
    saved: [index],
    backward: ([dy], [index]) => [gatherGradient(dy!, index, [outer, 1, inner], A, shape)],
  })
  return y
}

const extremum =
  (op: string, largest: boolean) =>
  <D extends DType>(x: Tensor<D>, axis?: number | readonly number[], keepDim = false): Tensor<D> => {
    checkFloat(op, 'x', x)
    checkBoolean(op, 'keepDim', keepDim)
    const axes = checkAxes(op, axis, x.shape.length)
    // From the last run on, so that of equal elements the first in row-major order is selected.
    const runs = axes.length === 0 ? [{ start: 0, end: 0 }] : runsOf(axes).reverse()
    return callScope(() => {
      const y = runs.reduce((y, run) => overRun(op, y, run, largest), x)
      return keepDim
        ? y
        : reshape(
            y,
            x.shape.filter((_, i) => !axes.includes(i)),
          )
    })
  }

const extremumIndex =
  (op: string, largest: boolean) =>
  (x: Tensor, axis?: number, keepDim = false): Tensor<'i32'> => {
    checkFloat(op, 'x', x)
    checkBoolean(op, 'keepDim', keepDim)
    const rank = x.shape.length
    const axes = checkAxes(op, axis, rank)
    if (axes.length > 1 && axis !== undefined) fail('OPTION', op, 'axis must be one axis, or absent for all')
    const run = axes.length === 0 ? { start: 0, end: 0 } : { start: axes[0], end: axes[axes.length - 1] + 1 }
    const { value, index } = extremaOf(op, x, run, largest)
    native.release(value)
    const shape = x.shape.flatMap((n, i) => (axes.includes(i) ? (keepDim ? [1] : []) : [n]))
    return wrap(reshaped(index, shape), { shape, dtype: 'i32', device: x.device })
  }

/**
 * The largest element over all axes (shape []), one axis, or several, as {@link ops.sum}: f32 or f64. NaN if one is. The
 * gradient goes to the selected element alone, the first of equal ones in row-major order, as that of `torch.max(dim)`
 * (`amax` would share it). Errors: DTYPE, OPTION; SHAPE for an axis without entries, or with 2^31 or more.
 *
 * @example
 * ```ts
 * const x = tensor([[1, 5, 2], [7, 3, 7]])
 * console.log(ops.max(x).item(), ops.max(x, 1).dataSync()) // → 7 Float32Array(2) [ 5, 7 ]
 * ```
 */
export const max = extremum('max', true)
/**
 * The smallest element, as {@link max}.
 *
 * @example
 * ```ts
 * console.log(ops.min(tensor([[1, 5], [7, 3]]), 0, true).dataSync()) // → Float32Array(2) [ 1, 3 ]
 * ```
 */
export const min = extremum('min', false)
/**
 * Where {@link max} is: i32, along one axis or, without `axis`, in the row-major order of all elements. The first of equal
 * elements, and of NaNs, if there are any. Errors as {@link max}.
 *
 * @example
 * ```ts
 * const x = tensor([[1, 5, 2], [7, 3, 7]])
 * console.log(ops.argmax(x).item(), ops.argmax(x, 1).dataSync()) // → 3 Int32Array(2) [ 1, 0 ]
 * ```
 */
export const argmax = extremumIndex('argmax', true)
/**
 * Where {@link min} is, as {@link argmax}.
 *
 * @example
 * ```ts
 * console.log(ops.argmin(tensor([[1, 5], [7, 3]]), 0).dataSync()) // → Int32Array(2) [ 0, 1 ]
 * ```
 */
export const argmin = extremumIndex('argmin', false)

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.max}. */
    max(axis?: number | readonly number[], keepDim?: boolean): Tensor<D>
    /** See {@link ops.min}. */
    min(axis?: number | readonly number[], keepDim?: boolean): Tensor<D>
    /** See {@link ops.argmax}. */
    argmax(axis?: number, keepDim?: boolean): Tensor<'i32'>
    /** See {@link ops.argmin}. */
    argmin(axis?: number, keepDim?: boolean): Tensor<'i32'>
  }
}
asMethods({ max, min, argmax, argmin })
