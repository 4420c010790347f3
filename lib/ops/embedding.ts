import { record } from '../autograd.js'
import { fail, showShape } from '../check.js'
import type { DType } from '../dtype.js'
import { native } from '../native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor.js'

/**
 * Rows of weight [V, D], f32 or f64, at index [...], i32 → [..., D]. Errors: SHAPE, DTYPE, DEVICE; OPTION for an index
 * outside of [0, V).
 *
 * @example
 * ```ts
 * const rows = embedding(tensor([[1, 2], [3, 4]]), tensor(Int32Array.of(1, 1, 0)))
 * console.log(rows.shape, rows.sum(1).dataSync()) // → [ 3, 2 ] Float32Array(3) [ 7, 7, 3 ]
 * ```
 */
export function embedding<D extends DType>(weight: Tensor<D>, index: Tensor): Tensor<D> {
  const op = 'embedding'
  checkFloat(op, 'weight', weight)
  checkTensor(op, 'index', index)
  if (weight.shape.length !== 2) fail('SHAPE', op, `weight must be [V, D], got ${showShape(weight.shape)}`)
  if (index.dtype !== 'i32') fail('DTYPE', op, `index must be i32, got ${index.dtype}`)
  const [V, D] = weight.shape
  const shape = [...index.shape, D]
  const out = wrap(native.embedding({ w: handleOf(weight), index: handleOf(index) }), {
    shape,
    dtype: weight.dtype,
    device: weight.device,
  })
  record({
    op,
    inputs: [weight],
    outputs: [out],
    saved: [index],
    backward: ([dy], [index]) => [native.embeddingBackward({ dy: dy!, index, V })],
  })
  return out
}
