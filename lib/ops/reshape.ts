import { record } from '../autograd/autograd.js'
import { checkAxis, checkShape, copyArray, fail, showShape, sizeOf } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { asMethods } from '../tensor/methods.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

/**
 * The same elements in another shape, sharing memory; one dimension may be −1 (what is left), unless another is 0. Any
 * dtype. Errors: SHAPE.
 *
 * @example
 * ```ts
 * console.log(ops.reshape(ones([2, 6]), [3, -1]).shape) // → [ 3, 4 ]
 * ```
 */
export function reshape<D extends DType>(x: Tensor<D>, shape: readonly number[]): Tensor<D> {
  checkTensor('reshape', 'x', x)
  const target = checkShape('reshape', 'shape', inferred(x.shape, shape))
  if (sizeOf(target) !== x.size)
    fail(
      'SHAPE',
      'reshape',
      `${showShape(x.shape)} has ${x.size} elements, ${showShape(target)} needs ${sizeOf(target)}`,
    )
  const y = wrap(native.reshape(handleOf(x), target), { shape: target, dtype: x.dtype, device: x.device })
  const { shape: from } = x
  record({ op: 'reshape', inputs: [x], outputs: [y], backward: ([dy]) => [native.reshape(dy!, from)] })
  return y
}

/** A shape with the length that −1 stands for. */
function inferred(from: readonly number[], shape: unknown): unknown {
  if (!Array.isArray(shape)) return shape
  const list = copyArray('reshape', 'shape', shape, 8, 'SHAPE')
  const open = list.filter((n) => n === -1).length
  if (open > 1) fail('SHAPE', 'reshape', `only one dimension may be -1, got ${show(list)}`)
  if (open === 0) return list
  const size = sizeOf(from)
  const known = list.reduce((a: number, n) => (n === -1 ? a : a * Number(n)), 1)
  if (known === 0) fail('SHAPE', 'reshape', `-1 could be any number beside a dimension of 0, got ${show(list)}`)
  if (known > 0 && size % known !== 0)
    fail('SHAPE', 'reshape', `${showShape(from)} has ${size} elements, which ${show(list)} does not divide`)
  return list.map((n) => (n === -1 ? (known > 0 ? size / known : 0) : n))
}

/**
 * Without its dimensions of length 1, or without those of `axis` alone, which must be 1. Any dtype. Errors: SHAPE, OPTION.
 *
 * @example
 * ```ts
 * console.log(ops.squeeze(ones([1, 3, 1])).shape, ops.squeeze(ones([1, 3, 1]), 0).shape) // → [ 3 ] [ 3, 1 ]
 * ```
 */
export function squeeze<D extends DType>(x: Tensor<D>, axis?: number): Tensor<D> {
  const op = 'squeeze'
  const { shape } = checkTensor(op, 'x', x)
  if (axis === undefined)
    return reshape(
      x,
      shape.filter((n) => n !== 1),
    )
  const at = checkAxis(op, axis, shape.length)
  if (shape[at] !== 1) fail('SHAPE', op, `dimension ${axis} of x must be 1, got ${showShape(shape)}`)
  return reshape(x, shape.toSpliced(at, 1))
}

/**
 * With a dimension of length 1 at `axis`, which counts from the end if negative. Any dtype. Errors: OPTION.
 *
 * @example
 * ```ts
 * console.log(ops.unsqueeze(ones([2, 3]), 1).shape, ops.unsqueeze(ones([2]), -1).shape) // → [ 2, 1, 3 ] [ 2, 1 ]
 * ```
 */
export function unsqueeze<D extends DType>(x: Tensor<D>, axis: number): Tensor<D> {
  const { shape } = checkTensor('unsqueeze', 'x', x)
  return reshape(x, shape.toSpliced(checkAxis('unsqueeze', axis, shape.length + 1), 0, 1))
}

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.reshape}. */
    reshape(shape: readonly number[]): Tensor<D>
    /** See {@link ops.squeeze}. */
    squeeze(axis?: number): Tensor<D>
    /** See {@link ops.unsqueeze}. */
    unsqueeze(axis: number): Tensor<D>
  }
}
asMethods({ reshape, squeeze, unsqueeze })
