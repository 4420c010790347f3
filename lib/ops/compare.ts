import { record } from '../autograd/autograd.js'
import { callScope } from '../autograd/scope.js'
import { fail } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import { type DType, dtypeCode } from '../runtime/dtype.js'
import { show, within } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { consumed, guarded, handlesOf } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { applied, binaryKinds, broadcastShape, withOperands } from './binary.js'
import { to } from './cast.js'
import { sumTo } from './reduce.js'

const { add: plus, less_equal: isLessEqual, equal: isEqual, keep, maximum, minimum } = binaryKinds

/** A comparison: 1 where it holds, else 0. */
const comparison =
  (op: string, kind: keyof typeof binaryKinds, turned = false) =>
  (a: Tensor | number, b: Tensor | number): Tensor<'i32'> =>
    withOperands(op, a, b, false, (a, b, shape) => {
      const handle = turned ? applied(kind, b, a, 'i32') : applied(kind, a, b, 'i32')
      return wrap(handle, { shape, dtype: 'i32', device: a.device })
    })

/**
 * a < b element by element with broadcasting, as 1 and 0: i32. Operands as in {@link ops.add}; not differentiable. False
 * for NaN.
 *
 * @example
 * ```ts
 * console.log(ops.less(tensor([1, 2, 3]), 2).dataSync()) // → Int32Array(3) [ 1, 0, 0 ]
 * ```
 */
export const less = comparison('less', 'less')
/**
 * a ≤ b, as {@link less}.
 *
 * @example
 * ```ts
 * console.log(ops.lessEqual(tensor([1, 2, 3]), 2).dataSync()) // → Int32Array(3) [ 1, 1, 0 ]
 * ```
 */
export const lessEqual = comparison('lessEqual', 'less_equal')
/**
 * a > b, as {@link less}.
 *
 * @example
 * ```ts
 * console.log(ops.greater(tensor([1, 2, 3]), 2).dataSync()) // → Int32Array(3) [ 0, 0, 1 ]
 * ```
 */
export const greater = comparison('greater', 'less', true)
/**
 * a ≥ b, as {@link less}.
 *
 * @example
 * ```ts
 * console.log(ops.greaterEqual(tensor([1, 2, 3]), 2).dataSync()) // → Int32Array(3) [ 0, 1, 1 ]
 * ```
 */
export const greaterEqual = comparison('greaterEqual', 'less_equal', true)
/**
 * a = b, as {@link less}.
 *
 * @example
 * ```ts
 * console.log(ops.equal(tensor([1, 2, 3]), 2).dataSync()) // → Int32Array(3) [ 0, 1, 0 ]
 * ```
 */
export const equal = comparison('equal', 'equal')

/**
 * Elements of a where the condition is not 0, of b elsewhere, with broadcasting of all three. The condition is of any
 * dtype, without NaN; a or b may be a number. What is not selected has no influence, and a gradient of 0. Errors: SHAPE,
 * DTYPE, DEVICE; NON_FINITE for a NaN in the condition, on a GPU by the next operation that waits for it.
 *
 * @example
 * ```ts
 * const x = tensor([1, -2, 3])
 * console.log(ops.where(ops.greater(x, 0), x, 0).dataSync()) // → Float32Array(3) [ 1, 0, 3 ]
 * ```
 */
export function where<D extends DType>(condition: Tensor, a: Tensor<D>, b: Tensor<D> | number): Tensor<D>
export function where<D extends DType>(condition: Tensor, a: number, b: Tensor<D>): Tensor<D>
export function where(condition: Tensor, a: Tensor | number, b: Tensor | number): Tensor {
  const op = 'where'
  checkTensor(op, 'condition', condition)
  return withOperands(op, a, b, false, (a, b, both): Tensor => {
    const { dtype, device } = a
    // f64 holds every i32
    if (dtype === 'i32') return callScope(() => to(where(condition, to(a, 'f64'), to(b, 'f64')), 'i32'))
    if (condition.device !== device)
      fail('DEVICE', op, `condition must be on ${device} like a, got ${condition.device}`)
    const shape = broadcastShape(op, condition.shape, both)
    const masks = masksOf(condition, a)
    const result = guarded(masks, () =>
      consumed(keep(handleOf(a), masks[0]), (first) =>
        consumed(keep(handleOf(b), masks[1]), (second) => plus(first, second)),
      ),
    )
    const y = wrap(result, { shape, dtype, device })
    const shapes = [a.shape, b.shape]
    record({
      op,
      inputs: [a, b],
      outputs: [y],
      saved: masks,
      backward: ([dy], saved, needs) =>
        handlesOf(shapes, (to, i) => (needs[i] ? sumTo(keep(dy!, saved[i]), shape, to) : null)),
    })
    return y
  })
}

/** New handles: 1 where the condition is not 0, and the opposite, in the dtype of `like`. */
function masksOf(condition: Tensor, like: Tensor): Handle[] {
  const dtype = dtypeCode(like.dtype)
  const mask = consumed(
    within('where', () => native.tokenMask({ x: handleOf(condition) })),
    (x) => native.convert(x, dtype),
  )
  return guarded([mask], () => [mask, consumed(scalar(like, 0), (zero) => isEqual(mask, zero))])
}

/**
 * x limited to [min, max]: f32 or f64; NaN stays. The gradient is that of y where min ≤ x ≤ max, else 0. Errors: DTYPE,
 * OPTION for limits that are not numbers or min > max.
 *
 * @example
 * ```ts
 * console.log(ops.clamp(tensor([-2, 0.5, 7]), 0, 1).dataSync()) // → Float32Array(3) [ 0, 0.5, 1 ]
 * ```
 */
export function clamp<D extends DType>(
  x: Tensor<D>,
  min: number = Number.NEGATIVE_INFINITY,
  max: number = Number.POSITIVE_INFINITY,
): Tensor<D> {
  const op = 'clamp'
  checkFloat(op, 'x', x)
  for (const [name, limit] of Object.entries({ min, max }))
    if (typeof limit !== 'number' || Number.isNaN(limit))
      fail('OPTION', op, `${name} must be a number, got ${show(limit)}`)
  if (min > max) fail('OPTION', op, `min must be at most max, got ${min} and ${max}`)
  const clamped = (use: (low: Handle, high: Handle) => Handle): Handle => {
    const [low, high] = handlesOf([min, max], (limit) => scalar(x, limit))
    return consumed(low, () => consumed(high, () => use(low, high)))
  }
  const y = wrap(
    clamped((low, high) => consumed(maximum(handleOf(x), low), (above) => minimum(above, high))),
    x,
  )
  record({
    op,
    inputs: [x],
    outputs: [y],
    saved: [x],
    backward: ([dy], [xv]) => [
      clamped((low, high) =>
        consumed(isLessEqual(low, xv), (above) =>
          consumed(isLessEqual(xv, high), (below) => consumed(keep(dy!, above), (dx) => keep(dx, below))),
        ),
      ),
    ],
  })
  return y
}

const scalar = ({ dtype, device }: Tensor, value: number): Handle =>
  native.full({ shape: [], dtype: dtypeCode(dtype), device: deviceIndex('full', device), value })

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.less}. */
    less(other: Tensor | number): Tensor<'i32'>
    /** See {@link ops.lessEqual}. */
    lessEqual(other: Tensor | number): Tensor<'i32'>
    /** See {@link ops.greater}. */
    greater(other: Tensor | number): Tensor<'i32'>
    /** See {@link ops.greaterEqual}. */
    greaterEqual(other: Tensor | number): Tensor<'i32'>
    /** See {@link ops.equal}. */
    equal(other: Tensor | number): Tensor<'i32'>
    /** See {@link ops.clamp}. */
    clamp(min?: number, max?: number): Tensor<D>
  }
}
asMethods({ less, lessEqual, greater, greaterEqual, equal, clamp })
