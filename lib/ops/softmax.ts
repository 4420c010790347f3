import { record } from '../autograd.js'
import { fail } from '../check.js'
import type { DType } from '../dtype.js'
import { asMethods } from '../methods.js'
import { native } from '../native.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor.js'

function overLastAxis<D extends DType>(op: 'softmax' | 'logSoftmax', x: Tensor<D>): Tensor<D> {
  checkFloat(op, 'x', x)
  if (x.shape.length === 0) fail('SHAPE', op, 'x must have at least one dimension, got []')
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
 * Softmax over the last axis, any leading shape, f32 or f64. A row with a NaN is NaN; others are not touched. Errors:
 * SHAPE for [], DTYPE.
 *
 * @example
 * ```ts
 * console.log(softmax(tensor([[0, 0], [0, 1000]])).dataSync()) // → Float32Array(4) [ 0.5, 0.5, 0, 1 ]
 * ```
 */
export const softmax = <D extends DType>(x: Tensor<D>): Tensor<D> => overLastAxis('softmax', x)
/**
 * x − logsumexp(x) over the last axis, as {@link softmax}.
 *
 * @example
 * ```ts
 * console.log(logSoftmax(tensor([0, 1000])).dataSync()) // → Float32Array(2) [ -1000, 0 ]
 * ```
 */
export const logSoftmax = <D extends DType>(x: Tensor<D>): Tensor<D> => overLastAxis('logSoftmax', x)

declare module '../tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.softmax}. */
    softmax(): Tensor<D>
  }
}
asMethods({ softmax })
