import { record } from '../autograd.js'
import { checkShape, copyArray, fail, showShape, sizeOf } from '../check.js'
import type { DType } from '../dtype.js'
import { show } from '../errors.js'
import { asMethods } from '../methods.js'
import { native } from '../native.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor.js'

/**
 * The same elements in another shape, sharing memory; one dimension may be −1 (what is left). Any dtype. Errors: SHAPE.
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
  if (known > 0 && size % known !== 0)
    fail('SHAPE', 'reshape', `${showShape(from)} has ${size} elements, which ${show(list)} does not divide`)
  return list.map((n) => (n === -1 ? (known > 0 ? size / known : 0) : n))
}

declare module '../tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.reshape}. */
    reshape(shape: readonly number[]): Tensor<D>
  }
}
asMethods({ reshape })
