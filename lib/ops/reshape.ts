import { record } from '../autograd.js'
import { checkShape, copyArray, fail, showShape, sizeOf } from '../check.js'
import type { DType } from '../dtype.js'
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
  const target = checkShape('reshape', 'shape', inferred(copyArray('reshape', 'shape', shape, 8, 'SHAPE'), x.size))
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

function inferred(shape: readonly unknown[], size: number): readonly unknown[] {
  if (shape.filter((n) => n === -1).length !== 1) return shape
  const known = shape.reduce((a: number, n) => (n === -1 ? a : a * Number(n)), 1)
  return shape.map((n) => (n === -1 ? (known > 0 ? size / known : 0) : n))
}
