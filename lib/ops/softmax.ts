import { record } from '../autograd/autograd.js'
import { callScope } from '../autograd/scope.js'
import { checkInteger, fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { asMethods } from '../tensor/methods.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { transpose } from './strided.js'

type Name = 'softmax' | 'logSoftmax'

function overAxis<D extends DType>(op: Name, x: Tensor<D>, axis: number): Tensor<D> {
  checkFloat(op, 'x', x)
  const rank = x.shape.length
  if (rank === 0) fail('SHAPE', op, 'x must have at least one dimension, got []')
  const at = checkInteger(op, 'axis', axis, -rank, rank - 1)
  if (at === -1 || at === rank - 1) return overLastAxis(op, x)
  return callScope(() => transpose(overLastAxis(op, transpose(x, at, -1)), at, -1))
}

function overLastAxis<D extends DType>(op: Name, x: Tensor<D>): Tensor<D> {
  const log = op === 'logSoftmax'
  const y = wrap(native.softmax({ x: handleOf(x), log }), x)
  record({
    op,
    inputs: [x],
    outputs: [y],
    saved: [y],
    backward: ([dy], [y]) => [native.softmaxBackward({ dy: dy!, y, log })],
  })
  return y
}

/**
 * Softmax over an axis, by default the last, of any shape, f32 or f64; another axis costs two transpositions. A row with
 * a NaN is NaN; others are not touched. Errors: SHAPE for [], DTYPE, OPTION.
 *
 * @example
 * ```ts
 * console.log(softmax(tensor([[0, 0], [0, 1000]])).dataSync()) // → Float32Array(4) [ 0.5, 0.5, 0, 1 ]
 * console.log(softmax(tensor([[0, 0], [0, 1000]]), 0).dataSync()) // → Float32Array(4) [ 0.5, 0, 0.5, 1 ]
 * ```
 */
export const softmax = <D extends DType>(x: Tensor<D>, axis = -1): Tensor<D> => overAxis('softmax', x, axis)
/**
 * x − logsumexp(x) over an axis, by default the last, as {@link softmax}.
 *
 * @example
 * ```ts
 * console.log(logSoftmax(tensor([0, 1000])).dataSync()) // → Float32Array(2) [ -1000, 0 ]
 * ```
 */
export const logSoftmax = <D extends DType>(x: Tensor<D>, axis = -1): Tensor<D> => overAxis('logSoftmax', x, axis)

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.softmax}. */
    softmax(axis?: number): Tensor<D>
  }
}
asMethods({ softmax })
