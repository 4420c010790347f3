import { record } from '../autograd/autograd.js'
import { fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { guarded } from '../tensor/handles.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { checkChoices, type SlotPlan, slotPlan } from './plan.js'
import type { Routing } from './routing.js'

/**
 * Σ_k weight_k · (row of the token's k-th slot): expert outputs [E, B, C, D] → [B, N, D], f32 or f64; zero rows for
 * fully dropped tokens (the combine tensor of GShard, arXiv 2006.16668, §3.1). Differentiable in x and `routing.weight`.
 * Errors: SHAPE, DTYPE, DEVICE; OPTION, also for two tokens in one slot.
 *
 * @example
 * ```ts
 * const x = randn([2, 16, 32])
 * const routing = ops.route(x, randn([4, 32]))
 * const rows = ops.dispatch(x, routing) // what experts of your own would change
 * console.log(ops.combine(rows, routing).shape) // → [ 2, 16, 32 ]
 * ```
 */
export function combine<D extends DType>(x: Tensor<D>, routing: Routing): Tensor<D> {
  const op = 'combine'
  checkFloat(op, 'x', x)
  if (x.shape.length !== 4) fail('SHAPE', op, `x must be [E, B, C, D], got ${showShape(x.shape)}`)
  const [E, B, C] = x.shape
  if (typeof routing !== 'object' || routing === null) fail('OPTION', op, 'routing must come from a router')
  const N = routing.expertIndex?.shape?.[1] ?? 0
  const routed = checkChoices(op, routing, B, N, x)
  if (routed.E !== E || routed.C !== C)
    fail('SHAPE', op, `x must be [${routed.E}, ${B}, ${routed.C}, D] for this routing, got ${showShape(x.shape)}`)
  return combineRows(op, x, routing, slotPlan(op, routing, E, C))
}

/** The same for rows x [..., D] of a plan, whose handles it takes over. */
export function combineRows<D extends DType>(op: string, x: Tensor<D>, routing: Routing, plan: SlotPlan): Tensor<D> {
  const { weight } = routing
  const [B, N] = weight.shape
  const made = guarded(plan, () => native.combine({ x: handleOf(x), weight: handleOf(weight), rowOf: plan[1] }))
  const y = wrap(made, { shape: [B, N, x.shape.at(-1)!], dtype: x.dtype, device: x.device })
  record({
    op,
    inputs: [x, weight],
    outputs: [y],
    saved: [x, weight, ...plan],
    backward: ([dy], [x, weight, assignment, rowOf], [needX, needWeight]) => {
      const given = { dy: dy!, x, weight, assignment, rowOf }
      const { dx, dweight } = native.combineBackward({ dx: needX, dweight: needWeight, ...given })
      return [dx, dweight]
    },
  })
  return y
}
