import { record } from '../autograd/autograd.js'
import { callScope } from '../autograd/scope.js'
import { checkInteger, copyArray, fail, showShape, sizeOf } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import { type DType, dtypeCode } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'
import { filled, handlesOf } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
import { checkTensor, handleOf, type Tensor, type TensorMeta, wrap } from '../tensor/tensor.js'
import { unsqueeze } from './reshape.js'

/** Row-major strides of a contiguous tensor. */
export function stridesOf(shape: readonly number[]): number[] {
  const strides = shape.map(() => 1)
  for (let i = shape.length - 2; i >= 0; i--) strides[i] = strides[i + 1] * shape[i + 1]
  return strides
}

/** A copy of x [shape] expanded to `target`, of the same rank; axes of length 1 repeat. */
export function expand(x: Handle, shape: readonly number[], target: readonly number[]): Handle {
  const strides = stridesOf(shape).map((stride, i) => (shape[i] === 1 ? 0 : stride))
  return native.stridedRead(x, target, strides, 0)
}

const swapped = <T>(list: readonly T[], i: number, j: number): T[] =>
  list.map((entry, at) => (at === i ? list[j] : at === j ? list[i] : entry))

/**
 * Swaps two axes, by default the last two: a copy. Any dtype. Errors: SHAPE below 2 axes, OPTION.
 *
 * @example
 * ```ts
 * console.log(ops.transpose(ones([2, 3, 4])).shape) // → [ 2, 4, 3 ]
 * ```
 */
export function transpose<D extends DType>(x: Tensor<D>, axis0 = -2, axis1 = -1): Tensor<D> {
  checkTensor('transpose', 'x', x)
  const rank = x.shape.length
  if (rank < 2) fail('SHAPE', 'transpose', `x must have at least 2 dimensions, got ${showShape(x.shape)}`)
  const i = (checkInteger('transpose', 'axis0', axis0, -rank, rank - 1) + rank) % rank
  const j = (checkInteger('transpose', 'axis1', axis1, -rank, rank - 1) + rank) % rank
  const swap = (handle: Handle, from: readonly number[]) =>
    native.stridedRead(handle, swapped(from, i, j), swapped(stridesOf(from), i, j), 0)
  const shape = swapped(x.shape, i, j)
  const y = wrap(swap(handleOf(x), x.shape), { shape, dtype: x.dtype, device: x.device })
  record({ op: 'transpose', inputs: [x], outputs: [y], backward: ([dy]) => [swap(dy!, shape)] })
  return y
}

/** Zeros of `meta` with `part` written at an offset. */
function placed(part: Handle, meta: TensorMeta, offset: number): Handle {
  const whole = native.full({
    shape: meta.shape,
    dtype: dtypeCode(meta.dtype),
    device: deviceIndex('slice', meta.device),
    value: 0,
  })
  return filled(whole, () => native.stridedWrite(whole, part, stridesOf(meta.shape), offset))
}

/**
 * Entries `start` to `end` (exclusive, default the axis' length) along an axis: a copy. Negative numbers count from the
 * end. Any dtype. Errors: SHAPE for [], OPTION.
 *
 * @example
 * ```ts
 * console.log(ops.slice(arange(5), 0, 1, -1).dataSync()) // → Int32Array(3) [ 1, 2, 3 ]
 * ```
 */
export function slice<D extends DType>(x: Tensor<D>, axis: number, start: number, end?: number): Tensor<D> {
  checkTensor('slice', 'x', x)
  const rank = x.shape.length
  if (rank === 0) fail('SHAPE', 'slice', 'x must have at least one dimension, got []')
  const at = (checkInteger('slice', 'axis', axis, -rank, rank - 1) + rank) % rank
  const length = x.shape[at]
  const first = fromEnd(checkInteger('slice', 'start', start, -length, length), length)
  const last = fromEnd(checkInteger('slice', 'end', end ?? length, -length, length), length)
  if (last < first) fail('OPTION', 'slice', `end must not be before start, got ${first} to ${last}`)
  const { shape: whole, dtype, device } = x
  const strides = stridesOf(whole)
  const shape = whole.map((n, i) => (i === at ? last - first : n))
  const offset = first * strides[at]
  const y = wrap(native.stridedRead(handleOf(x), shape, strides, sizeOf(shape) ? offset : 0), { shape, dtype, device })
  record({
    op: 'slice',
    inputs: [x],
    outputs: [y],
    backward: ([dy]) => [placed(dy!, { shape: whole, dtype, device }, offset)],
  })
  return y
}

const fromEnd = (index: number, length: number): number => (index < 0 ? index + length : index)

/**
 * Tensors one after another along an axis; all other dimensions, dtype and device must agree. Errors: SHAPE, DTYPE,
 * DEVICE, OPTION.
 *
 * @example
 * ```ts
 * console.log(concat([ones([2, 3]), zeros([1, 3])]).shape) // → [ 3, 3 ]
 * ```
 */
export function concat<D extends DType>(tensors: readonly Tensor<D>[], axis = 0): Tensor<D> {
  const op = 'concat'
  const list = copyArray(op, 'tensors', tensors, 2 ** 20)
  if (list.length === 0) fail('OPTION', op, 'tensors must not be empty')
  const first = checkTensor(op, 'tensors[0]', list[0]) as Tensor<D>
  const rank = first.shape.length
  if (rank === 0) fail('SHAPE', op, 'tensors must have at least one dimension')
  const at = (checkInteger(op, 'axis', axis, -rank, rank - 1) + rank) % rank
  const { dtype, device } = first
  const parts = list.map((entry, i) => {
    const length = checkTensor(op, `tensors[${i}]`, entry).shape[at]
    const shape = first.shape.map((n, j) => (j === at ? (length ?? n) : n))
    return checkTensor(op, `tensors[${i}]`, entry, { shape, dtype, device })
  })
  const lengths = parts.map((part) => part.shape[at])
  const shape = first.shape.map((n, i) => (i === at ? lengths.reduce((a, b) => a + b, 0) : n))
  const strides = stridesOf(shape)
  const offsets = lengths.map((_, i) => lengths.slice(0, i).reduce((a, b) => a + b, 0) * strides[at])
  const joined = filled(
    native.full({ shape, dtype: dtypeCode(dtype), device: deviceIndex(op, device), value: 0 }),
    (handle) => {
      for (const [i, part] of parts.entries())
        if (part.size) native.stridedWrite(handle, handleOf(part), strides, offsets[i])
    },
  )
  const y = wrap(joined, { shape, dtype, device })
  const shapes = parts.map((part) => part.shape)
  record({
    op,
    inputs: parts,
    outputs: [y],
    backward: ([dy], _, needs) =>
      handlesOf(shapes, (part, i) =>
        needs[i] ? native.stridedRead(dy!, part, strides, sizeOf(part) ? offsets[i] : 0) : null,
      ),
  })
  return y
}

/**
 * Tensors of one shape side by side along a new axis; dtype and device must agree. Errors: SHAPE, DTYPE, DEVICE, OPTION.
 *
 * @example
 * ```ts
 * console.log(ops.stack([ones([3]), zeros([3])]).shape) // → [ 2, 3 ]
 * ```
 */
export function stack<D extends DType>(tensors: readonly Tensor<D>[], axis = 0): Tensor<D> {
  const op = 'stack'
  const list = copyArray(op, 'tensors', tensors, 2 ** 20)
  if (list.length === 0) fail('OPTION', op, 'tensors must not be empty')
  const { shape, dtype, device } = checkTensor(op, 'tensors[0]', list[0])
  const rank = shape.length + 1
  const at = (checkInteger(op, 'axis', axis, -rank, rank - 1) + rank) % rank
  const parts = list.map((entry, i) => checkTensor(op, `tensors[${i}]`, entry, { shape, dtype, device }) as Tensor<D>)
  return callScope(() =>
    concat(
      parts.map((part) => unsqueeze(part, at)),
      at,
    ),
  )
}

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.transpose}. */
    transpose(axis0?: number, axis1?: number): Tensor<D>
    /** See {@link ops.slice}. */
    slice(axis: number, start: number, end?: number): Tensor<D>
  }
}
asMethods({ transpose, slice })
