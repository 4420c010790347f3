import { record } from '../autograd/autograd.js'
import { fail, showShape, sizeOf } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'
import { handlesOf } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { summed } from './reduce.js'
import { reshaped, withViews } from './rows.js'

/** As [batch, rows, columns]. */
const asBatch = (shape: readonly number[]): number[] => [sizeOf(shape.slice(0, -2)), ...shape.slice(-2)]

/** a · b of two handles of rank 3, or their transposes. */
const multiply = (a: Handle, b: Handle, transposeA = false, transposeB = false) =>
  native.matmul(a, b, transposeA, transposeB)

/** Sums over the batch if the operand had none. */
function toOperand(grad: Handle, batch: number, own: readonly number[], shape: readonly number[]): Handle {
  return own[0] === batch ? reshaped(grad, shape) : summed(grad, [1, batch, own[1] * own[2]], shape, 1)
}

/**
 * Matrix multiplication: a [..., M, K] · b [..., K, N] → [..., M, N]. The leading dimensions are equal, or one side has none
 * (or only ones) and is used for the whole batch. f32 or f64. Errors: SHAPE, DTYPE, DEVICE.
 *
 * @example
 * ```ts
 * console.log(matmul(randn([8, 2, 3]), randn([3, 5])).shape) // → [ 8, 2, 5 ]
 * ```
 */
export function matmul<D extends DType>(a: Tensor<D>, b: Tensor): Tensor<D> {
  const op = 'matmul'
  checkFloat(op, 'a', a)
  checkTensor(op, 'b', b)
  if (b.dtype !== a.dtype) fail('DTYPE', op, `b must be ${a.dtype} like a, got ${b.dtype}`)
  if (a.shape.length < 2 || b.shape.length < 2)
    fail('SHAPE', op, `a and b must have at least 2 dimensions, got ${showShape(a.shape)} and ${showShape(b.shape)}`)
  const [as, bs] = [asBatch(a.shape), asBatch(b.shape)]
  if (as[2] !== bs[1])
    fail('SHAPE', op, `the inner dimensions must agree, got ${showShape(a.shape)} and ${showShape(b.shape)}`)
  const [aLead, bLead] = [a.shape.slice(0, -2), b.shape.slice(0, -2)]
  const lead = as[0] === 1 && (bs[0] !== 1 || bLead.length > aLead.length) ? bLead : aLead
  if (as[0] !== 1 && bs[0] !== 1 && aLead.join() !== bLead.join()) {
    fail('SHAPE', op, `the leading dimensions must agree, got ${showShape(a.shape)} and ${showShape(b.shape)}`)
  }
  const batch = sizeOf(lead)
  const shape = [...lead, as[1], bs[2]]
  const y3 = withViews([handleOf(a), handleOf(b)], [as, bs], ([av, bv]) => multiply(av, bv))
  const y = wrap(reshaped(y3, shape), { shape, dtype: a.dtype, device: a.device })
  const [aShape, bShape] = [a.shape, b.shape]
  record({
    op,
    inputs: [a, b],
    outputs: [y],
    saved: [a, b],
    backward: ([dy], saved, [needA, needB]) =>
      withViews([dy!, ...saved], [[batch, as[1], bs[2]], as, bs], ([dyv, av, bv]) =>
        handlesOf(
          [
            () => (needA ? toOperand(multiply(dyv, bv, false, true), batch, as, aShape) : null),
            () => (needB ? toOperand(multiply(av, dyv, true), batch, bs, bShape) : null),
          ],
          (gradient) => gradient(),
        ),
      ),
  })
  return y
}

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.matmul}. */
    matmul(other: Tensor): Tensor<D>
  }
}
asMethods({ matmul })
