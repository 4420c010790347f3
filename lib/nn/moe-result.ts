import type { RouteResult, Routing } from '../ops/routing.js'
import { fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { isTensor, type Tensor } from '../tensor/tensor.js'
import { type RoutingStats, statsOf } from './routing-stats.js'

type Tensors<D extends DType> = readonly [
  outputs: Tensor<D>,
  totalAuxLoss: Tensor<D>,
  balanceLoss: Tensor<D>,
  routerZLoss: Tensor<D>,
]

function checkRoute<D extends DType>(route: RouteResult<D>): RouteResult<D> {
  if (typeof route === 'object' && route !== null && !isTensor(route)) return route
  return fail('OPTION', 'MoEResult', `route must be a routing with its losses, as of ops.route, got ${show(route)}`)
}

function expectTensors(tensors: Readonly<Record<string, unknown>>): void {
  for (const [name, value] of Object.entries(tensors))
    if (!isTensor(value)) fail('OPTION', 'MoEResult', `${name} must be a Tensor, got ${show(value)}`)
}

/** An array, so that TypeScript knows the types by position. */
const Tuple = Array as unknown as new <D extends DType>(...tensors: Tensors<D>) => Tensors<D>

/**
 * What a MoE layer returns, by name or by position: outputs, totalAuxLoss, balanceLoss, routerZLoss.
 *
 * @example
 * ```ts
 * const moe = new MoE({ dim: 32, numExperts: 4 })
 * const { outputs, totalAuxLoss, routing } = moe.forward(randn([2, 16, 32]))
 * const [sameOutputs] = moe.forward(randn([2, 16, 32]))
 * console.log(outputs.shape, totalAuxLoss.shape, routing.kept.shape) // → [ 2, 16, 32 ] [] [ 2, 16, 2 ]
 * ```
 */
export class MoEResult<D extends DType = DType> extends Tuple<D> {
  /** [B, N, O], O = D unless the layer has an `outputDim`. */
  readonly outputs: Tensor<D>
  /** balanceLossCoef · balanceLoss + routerZLossCoef · routerZLoss, shape []; 0 in evaluation, as the other two. */
  readonly totalAuxLoss: Tensor<D>
  /** Shape [], without its coefficient: (E / B) · Σ_b Σ_e f · P, about 1 if the load is even. */
  readonly balanceLoss: Tensor<D>
  /** Shape [], without its coefficient: the mean of logsumexp(logits)². */
  readonly routerZLoss: Tensor<D>
  /** Where the tokens went. */
  readonly routing: Routing<D>
  /** With `stats: true`. */
  readonly stats?: RoutingStats

  /** For custom layers. `stats: true` counts them from the routing, which waits for a GPU. Errors: OPTION. */
  constructor(outputs: Tensor<D>, route: RouteResult<D>, stats: boolean | RoutingStats = false) {
    const { balanceLoss, routerZLoss, totalAuxLoss, ...routing } = checkRoute(route)
    expectTensors({ outputs, balanceLoss, routerZLoss, totalAuxLoss })
    super(outputs, totalAuxLoss, balanceLoss, routerZLoss)
    this.outputs = outputs
    this.totalAuxLoss = totalAuxLoss
    this.balanceLoss = balanceLoss
    this.routerZLoss = routerZLoss
    this.routing = routing
    if (stats) this.stats = stats === true ? statsOf(routing) : stats
  }

  /** `map` and the other methods of an array return a plain array. */
  static get [Symbol.species](): ArrayConstructor {
    return Array
  }

  /** The same routing with other outputs. */
  withOutputs(outputs: Tensor<D>): MoEResult<D> {
    const { balanceLoss, routerZLoss, totalAuxLoss, routing } = this
    return new MoEResult(outputs, { ...routing, balanceLoss, routerZLoss, totalAuxLoss }, this.stats)
  }

  /** The same result with `f` applied to outputs and losses; used by module hooks. */
  mapTensors(f: (tensor: Tensor<D>) => Tensor<D>): MoEResult<D> {
    const outputs = f(this.outputs)
    const [totalAuxLoss, balanceLoss, routerZLoss] = [f(this.totalAuxLoss), f(this.balanceLoss), f(this.routerZLoss)]
    return new MoEResult(outputs, { ...this.routing, totalAuxLoss, balanceLoss, routerZLoss }, this.stats)
  }

  /** Frees every tensor of the result. */
  dispose(): void {
    const { expertIndex, gate, kept, position, weight, mask, logits } = this.routing
    for (const tensor of [...this, expertIndex, gate, kept, position, weight, mask, logits]) tensor?.dispose()
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}
