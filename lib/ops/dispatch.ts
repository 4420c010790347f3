import { record } from '../autograd/autograd.js'
import { checkBoolean, checkOptions } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { guarded } from '../tensor/handles.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { checkRouting, type SlotPlan, slotPlan } from './plan.js'
import type { Routing } from './routing.js'

/** Options of {@link dispatch}. */
export interface DispatchOptions {
  /**
   * The routing weight w gets the gradient <x, d row>, as if the row were x · (1 + w − stop_gradient(w)), as in
   * st-moe-pytorch. Default true.
   */
  straightThrough?: boolean
}

/**
 * Copies each dispatched token to its slots: x [B, N, D] → [E, B, C, D], f32 or f64; empty slots are zero (the dispatch tensor
 * of GShard, arXiv 2006.16668, §3.1, without a tensor of that size). Errors: SHAPE, DTYPE, DEVICE; OPTION, also for two
 * tokens in one slot.
 *
 * @example
 * ```ts
 * const x = randn([2, 16, 32])
 * const routing = ops.route(x, randn([4, 32]))
 * console.log(ops.dispatch(x, routing).shape) // → [ 4, 2, 5, 32 ]
 * ```
 */
export function dispatch<D extends DType>(x: Tensor<D>, routing: Routing, options?: DispatchOptions): Tensor<D> {
  const op = 'dispatch'
  const { straightThrough = true } = checkOptions<DispatchOptions>(op, options, ['straightThrough'])
  checkBoolean(op, 'straightThrough', straightThrough)
  checkFloat(op, 'x', x)
  const { E, C } = checkRouting(op, routing, x)
  const [B, , D] = x.shape
  return dispatchRows(op, x, routing, slotPlan(op, routing, E, C), [E, B, C, D], straightThrough)
}

/** The rows of a plan, whose handles it takes over, as `shape` [..., D]. */
export function dispatchRows<D extends DType>(
  op: string,
  x: Tensor<D>,
  routing: Routing,
  plan: SlotPlan,
  shape: readonly number[],
  straightThrough: boolean,
): Tensor<D> {
  const made = guarded(plan, () => native.dispatch({ x: handleOf(x), assignment: plan[0], rowOf: plan[1] }))
  const y = wrap(made, { shape, dtype: x.dtype, device: x.device })
  record({
    op,
    inputs: [x, straightThrough ? routing.weight : null],
    outputs: [y],
    saved: [x, ...plan],
    backward: ([dy], [x, , rowOf]) => {
      const { dx, dweight } = native.dispatchBackward({ dy: dy!, x, rowOf, dweight: straightThrough })
      return [dx, dweight]
    },
  })
  return y
}
