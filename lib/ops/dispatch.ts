import { record } from '../autograd.js'
import { checkBoolean, checkInteger, checkOptions, fail, showShape } from '../check.js'
import type { DType } from '../dtype.js'
import { native } from '../native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor.js'
import type { Routing } from './route.js'

/** Options of {@link dispatch}. */
export interface DispatchOptions {
  /**
   * The routing weight w gets the gradient <x, d row>, as if the row were x · (1 + w − stop_gradient(w)), as in
   * st-moe-pytorch. Default true.
   */
  straightThrough?: boolean
}

/**
 * Copies each kept token to its slots: x [B, N, D] → [E, B, C, D], f32 or f64; empty slots are zero (the dispatch tensor
 * of GShard, arXiv 2006.16668, §3.1, without a tensor of that size). Errors: SHAPE, DTYPE, DEVICE, OPTION.
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
  if (x.shape.length !== 3) fail('SHAPE', op, `x must be [B, N, D], got ${showShape(x.shape)}`)
  const [B, N, D] = x.shape
  const { K, E, C } = checkRouting(op, routing, B, N, x)
  const { expertIndex, position } = routing
  const shape = [E, B, C, D]
  const made = native.dispatch({
    x: handleOf(x),
    expertIndex: handleOf(expertIndex),
    position: handleOf(position),
    E,
    C,
  })
  const y = wrap(made, { shape, dtype: x.dtype, device: x.device })
  record({
    op,
    inputs: [x, straightThrough ? routing.weight : null],
    outputs: [y],
    saved: [x, expertIndex, position],
    backward: ([dy], [x, expertIndex, position]) => {
      const wanted = { dweight: straightThrough && K > 0 }
      const { dx, dweight } = native.dispatchBackward({ dy: dy!, x, expertIndex, position, ...wanted })
      return [dx, dweight]
    },
  })
  return y
}

/** What `dispatch` and `combine` need of a routing. */
export function checkRouting(
  op: string,
  routing: Routing,
  B: number,
  N: number,
  like: Tensor,
): { K: number; E: number; C: number } {
  if (typeof routing !== 'object' || routing === null) fail('OPTION', op, 'routing must come from route()')
  const { dtype, device } = like
  checkTensor(op, 'routing.expertIndex', routing.expertIndex)
  const K = routing.expertIndex.shape[2] ?? 0
  checkTensor(op, 'routing.expertIndex', routing.expertIndex, { shape: [B, N, K], dtype: 'i32', device })
  checkTensor(op, 'routing.position', routing.position, { shape: [B, N, K], dtype: 'i32', device })
  checkTensor(op, 'routing.weight', routing.weight, { shape: [B, N, K], dtype, device })
  const E = checkInteger(op, 'routing.numExperts', routing.numExperts, 1, 2 ** 31 - 1)
  const C = checkInteger(op, 'routing.capacity', routing.capacity, 0, 2 ** 31 - 1)
  return { K, E, C }
}
