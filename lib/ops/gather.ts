import { record } from '../autograd/autograd.js'
import { callScope } from '../autograd/scope.js'
import { checkInteger, fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { asMethods } from '../tensor/methods.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { rowsAt } from './embedding.js'
import { gatherGradient, reshaped, splitAt, withViews } from './rows.js'
import { slice } from './strided.js'

function checkIndex(op: string, x: Tensor, axis: number, index: Tensor): number {
  checkTensor(op, 'x', x)
  const rank = x.shape.length
  if (rank === 0) fail('SHAPE', op, 'x must have at least one dimension, got []')
  const at = (checkInteger(op, 'axis', axis, -rank, rank - 1) + rank) % rank
  if (checkTensor(op, 'index', index).dtype !== 'i32')
    fail('DTYPE', op, `index must be i32, got ${index.dtype}; convert it with .to('i32')`)
  if (index.device !== x.device) fail('DEVICE', op, `index must be on ${x.device} like x, got ${index.device}`)
  return at
}

/**
 * y[…, k, …] = x[…, index[…, k, …], …] along an axis, as `torch.gather`: x of any dtype, index i32 of as many dimensions,
 * none longer than in x except the axis → the shape of index. The gradient adds up where an index repeats, in a fixed
 * order. Errors: SHAPE, DTYPE, DEVICE; OPTION for an index outside of the axis, on a GPU by the next operation that waits
 * for it.
 *
 * @example
 * ```ts
 * const x = tensor([[1, 2, 3], [4, 5, 6]])
 * console.log(ops.gather(x, 1, tensor(Int32Array.of(2, 0), [2, 1])).dataSync()) // → Float32Array(2) [ 3, 4 ]
 * ```
 */
export function gather<D extends DType>(x: Tensor<D>, axis: number, index: Tensor): Tensor<D> {
  const op = 'gather'
  const at = checkIndex(op, x, axis, index)
  const { shape } = index
  if (shape.length !== x.shape.length || shape.some((n, i) => i !== at && n > x.shape[i])) {
    const most = x.shape.map((n, i) => (i === at ? 'any' : `at most ${n}`))
    fail('SHAPE', op, `index must be ${showShape(most)}, got ${showShape(shape)}`)
  }
  return callScope(() => {
    const sliced = shape.reduce((part, n, i) => (i !== at && n < part.shape[i] ? slice(part, i, 0, n) : part), x)
    return alongAxis(op, sliced, at, index)
  })
}

/** x and index differ in the length of the axis alone. */
function alongAxis<D extends DType>(op: string, x: Tensor<D>, axis: number, index: Tensor): Tensor<D> {
  const { shape: from, dtype, device } = x
  const { shape } = index
  const split = splitAt(shape, axis)
  const entries = withViews([handleOf(x), handleOf(index)], [splitAt(from, axis), split], ([x, index]) =>
    native.gather({ x, index }),
  )
  const y = wrap(reshaped(entries, shape), { shape, dtype, device })
  record({
    op,
    inputs: [x],
    outputs: [y],
    saved: [index],
    backward: ([dy], [index]) => [gatherGradient(dy!, index, split, from[axis], from)],
  })
  return y
}

/**
 * The entries of an axis at each index, as `torch.index_select`: x of any dtype, index i32 [K] → the shape of x with K in
 * place of the axis. The gradient adds up where an index repeats, in a fixed order. Errors as {@link gather}.
 *
 * @example
 * ```ts
 * const rows = ops.indexSelect(tensor([[1, 2], [3, 4], [5, 6]]), 0, tensor(Int32Array.of(2, 0, 2)))
 * console.log(rows.shape, rows.dataSync()) // → [ 3, 2 ] Float32Array(6) [ 5, 6, 1, 2, 5, 6 ]
 * ```
 */
export function indexSelect<D extends DType>(x: Tensor<D>, axis: number, index: Tensor): Tensor<D> {
  const op = 'indexSelect'
  const at = checkIndex(op, x, axis, index)
  const { shape } = x
  if (index.shape.length !== 1) fail('SHAPE', op, `index must be [K], got ${showShape(index.shape)}`)
  return rowsAt(op, x, splitAt(shape, at), index, shape.with(at, index.size))
}

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.gather}. */
    gather(axis: number, index: Tensor): Tensor<D>
    /** See {@link ops.indexSelect}. */
    indexSelect(axis: number, index: Tensor): Tensor<D>
  }
}
asMethods({ gather, indexSelect })
