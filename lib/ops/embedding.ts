import { record } from '../autograd/autograd.js'
import { fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { reshaped, withViews } from './rows.js'

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
  if (index.dtype !== 'i32') fail('DTYPE', op, `index must be i32, got ${index.dtype}; convert it with .to('i32')`)
  const [V, D] = weight.shape
  return rowsAt(op, weight, [1, V, D], index, [...index.shape, D])
}

/** Rows of x as [outer, V, D], at each index, i32 → `shape`, of the size of [outer, indices, D]. */
export function rowsAt<D extends DType>(
  op: string,
  x: Tensor<D>,
  split: readonly [outer: number, V: number, D: number],
  index: Tensor,
  shape: readonly number[],
): Tensor<D> {
  const { shape: from, dtype, device } = x
  const [outer, V, D] = split
  const rows = withViews([handleOf(x)], [split], ([w]) => native.embedding({ w, index: handleOf(index) }))
  const y = wrap(reshaped(rows, shape), { shape, dtype, device })
  const made = [outer, index.size, D]
  record({
    op,
    inputs: [x],
    outputs: [y],
    saved: [index],
    backward: ([dy], [index]) => [
      reshaped(
        withViews([dy!], [made], ([dy]) => native.embeddingBackward({ index, dy, V })),
        from,
      ),
    ],
  })
  return y
}
