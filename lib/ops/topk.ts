import { record } from '../autograd/autograd.js'
import { checkInteger, fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

/** What {@link topk} returns. */
export interface TopK<D extends DType = DType> {
  /** [..., K], descending; differentiable. */
  values: Tensor<D>
  /** i32 [..., K], where they were. */
  indices: Tensor<'i32'>
}

/**
 * The K largest entries of the last axis, descending; on ties the lowest index first. x [..., E], f32 or f64 → [..., K].
 * Errors: SHAPE for [], DTYPE, OPTION.
 *
 * @example
 * ```ts
 * const { values, indices } = ops.topk(tensor([0.2, 0.5, 0.5, 0.1]), 2)
 * console.log(values.dataSync(), indices.dataSync()) // → Float32Array(2) [ 0.5, 0.5 ] Int32Array(2) [ 1, 2 ]
 * ```
 */
export function topk<D extends DType>(x: Tensor<D>, k: number): TopK<D> {
  const op = 'topk'
  checkFloat(op, 'x', x)
  if (x.shape.length === 0) fail('SHAPE', op, 'x must have at least one dimension, got []')
  const E = x.shape[x.shape.length - 1]
  checkInteger(op, 'k', k, 1, E)
  const { shape, device } = x
  const out = [...shape.slice(0, -1), k]
  const { value, index } = native.topk({ x: handleOf(x), K: k })
  const values = wrap(value, { shape: out, dtype: x.dtype, device })
  const indices = wrap(index, { shape: out, dtype: 'i32', device })
  record({
    op,
    inputs: [x],
    outputs: [values],
    saved: [indices],
    backward: ([dvalue], [index]) => [native.topkBackward({ dvalue: dvalue!, index, E })],
  })
  return { values, indices }
}
