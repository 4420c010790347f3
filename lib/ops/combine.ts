import { record } from '../autograd.js'
import { fail, showShape } from '../check.js'
import type { DType } from '../dtype.js'
import { native } from '../native.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor.js'
import { checkRouting } from './dispatch.js'
import type { Routing } from './route.js'

/**
 * Σ_k weight_k · (row of the token's k-th slot): expert outputs [E, B, C, D] → [B, N, D], f32 or f64; zero rows where
 * nothing was kept (the combine tensor of GShard, arXiv 2006.16668, §3.1). Differentiable in x and `routing.weight`.
 * Errors: SHAPE, DTYPE, DEVICE, OPTION.
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
  const [E, B, C, D] = x.shape
  const N = routing?.expertIndex?.shape?.[1] ?? 0
  const routed = checkRouting(op, routing, B, N, x)
  if (routed.E !== E || routed.C !== C) {
    fail('SHAPE', op, `x must be [${routed.E}, ${B}, ${routed.C}, D] for this routing, got ${showShape(x.shape)}`)
  }
  const { expertIndex, position, weight } = routing
  const made = native.combine({
    x: handleOf(x),
    weight: handleOf(weight),
    expertIndex: handleOf(expertIndex),
    position: handleOf(position),
  })
  const y = wrap(made, { shape: [B, N, D], dtype: x.dtype, device: x.device })
  record({
    op,
    inputs: [x, weight],
    outputs: [y],
    saved: [x, weight, expertIndex, position],
    backward: ([dy], [x, weight, expertIndex, position], [needX, needWeight]) => {
      const given = { dy: dy!, x, weight, expertIndex, position }
      const { dx, dweight } = native.combineBackward({ dx: needX, dweight: needWeight, ...given })
      return [dx, dweight]
    },
  })
  return y
}
