import { noGrad, scope } from '../autograd/scope.js'
import { add, div, mul } from '../ops/binary.js'
import { greater } from '../ops/compare.js'
import { dispatch } from '../ops/dispatch.js'
import { mean, sum } from '../ops/reduce.js'
import { reshape } from '../ops/reshape.js'
import type { lossOptions } from '../ops/route-options.js'
import { eachChoice, type RouteResult } from '../ops/routing.js'
import { concat } from '../ops/strided.js'
import { relu } from '../ops/unary.js'
import { copyArray, fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import type { ValuesOf } from '../runtime/options.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Module } from './module.js'
import type { MoEResult } from './moe-result.js'
import { type ExpertsCall, type Routed, RoutedExperts, scaled } from './routed-experts.js'
import { combined, rowsOfEach } from './user-experts.js'

/** A layer of the second level. */
export interface GroupLayer extends Module {
  /** x [B, N, D] with the importance [B, N] of its rows, and random numbers of the caller. */
  forward<D extends DType>(x: Tensor<D>, options: { importance: Tensor; random?: object }): MoEResult<D>
  /** @internal */
  updateExpertBias(rate: number): void
}

type Losses<D extends DType> = Pick<RouteResult<D>, 'balanceLoss' | 'routerZLoss'>

/** How n slots are cut, as Mesh TensorFlow does: into the fewest equal parts above n / most. */
function partsOf(n: number, most: number): number {
  let parts = Math.max(1, Math.floor(n / Math.max(1, most)))
  while (n % parts !== 0) parts++
  return parts
}

/**
 * Groups of experts, each a layer with a router of its own over the slots that the first router gives it (Mesh TensorFlow:
 * two levels). The importance of a slot is 1 if its combine weight is above 0.5, 0.5 if it is above 0, else 0. Under the
 * names `experts.{i}.…`. {@link MoE} makes it if `numExperts` is a pair.
 *
 * @example
 * ```ts
 * const moe = new MoE({ dim: 32, numExperts: [2, 4] })
 * console.log(Object.keys(moe.stateDict())[5]) // → experts.experts.0.gate.to_gates.weight
 * ```
 */
export class ExpertGroups extends RoutedExperts {
  /** E1 layers of E2 experts. */
  readonly experts: readonly GroupLayer[]
  readonly #losses: ValuesOf<[typeof lossOptions]>

  /** {@link MoE} makes the layers; the factors are those of its losses. */
  constructor(experts: readonly GroupLayer[], losses: ValuesOf<[typeof lossOptions]>) {
    super()
    this.experts = experts
    this.#losses = losses
  }

  /** @internal */
  override expectGroupRandom(): void {}

  /** @internal */
  override updateExpertBias(rate: number): void {
    for (const layer of this.experts) layer.updateExpertBias(rate)
  }

  /**
   * With the losses of both levels: the load-balancing loss of the second is the mean of those of the groups, its z-loss
   * the mean over all their tokens of importance 1.
   * @internal
   */
  override run<D extends DType>(x: Tensor<D>, choice: RouteResult<D>, call: ExpertsCall): Routed<D> {
    const { balanceLossCoef, routerZLossCoef } = this.#losses
    const routing = scaled(choice, call.routedScalingFactor)
    const random = call.groupRandom === undefined ? [] : this.#checkRandom(call.groupRandom)
    const result = this.#apply(x, choice, call, random)
    const totalAuxLoss = add(mul(result.balanceLoss, balanceLossCoef), mul(result.routerZLoss, routerZLossCoef))
    return { ...routing, ...result, totalAuxLoss }
  }

  #checkRandom(groupRandom: unknown): object[] {
    const op = 'MoE.forward'
    const list = copyArray(op, 'groupRandom', groupRandom, 2 ** 20)
    const count = this.experts.length
    if (list.length !== count)
      fail('OPTION', op, `groupRandom must hold one for each of ${count} groups, got ${list.length}`)
    return list as object[]
  }

  /** Slots are cut into sequences of at most N. */
  #apply<D extends DType>(
    x: Tensor<D>,
    routing: RouteResult<D>,
    { straightThrough, routedScalingFactor: factor }: ExpertsCall,
    random: readonly object[],
  ): Losses<D> & { outputs: Tensor<D> } {
    const importance = noGrad(() => scope(() => importanceOf(routing, x)))
    const slots = rowsOfEach(importance)
    const [B, C] = slots[0].shape
    const parts = partsOf(B * C, x.shape[1])
    const results = rowsOfEach(dispatch(x, routing, { straightThrough })).map((rows, i) => {
      const cut = <T extends DType>(tensor: Tensor<T>, last: number[]) =>
        reshape(tensor, [parts, (B * C) / parts, ...last])
      const result = this.experts[i].forward(cut(rows, [x.shape[2]]), {
        importance: cut(slots[i], []),
        random: random[i],
      })
      const { outputs } = result
      return { ...result, outputs: reshape(outputs, [B, C, outputs.shape[2]]) }
    })
    const list = (name: 'balanceLoss' | 'routerZLoss'): Tensor<D> =>
      concat(
        results.map((result) => reshape(result[name], [1])),
        0,
      )
    const counts = noGrad(() => sum(reshape(wholeOf(importance), [slots.length, B * C]), 1)) as Tensor<D>
    const atLeastOne = add(relu(add(sum(counts), -1)), 1)
    const y = combined(
      results.map(({ outputs }) => outputs),
      routing,
    )
    return {
      outputs: factor === 1 ? y : mul(y, factor),
      balanceLoss: add(routing.balanceLoss, mean(list('balanceLoss'))),
      routerZLoss: add(routing.routerZLoss, div(sum(mul(list('routerZLoss'), counts)), atLeastOne)),
    }
  }
}

/** 1 where importance is 1, else 0. */
const wholeOf = (importance: Tensor): Tensor => greater(importance, 0.5).to(importance.dtype)

/** [E1, B, C], of the slots. */
function importanceOf<D extends DType>(routing: RouteResult<D>, { dtype }: Tensor<D>): Tensor<D> {
  const each = eachChoice(routing, routing.weight)
  const weights = dispatch(each.weight, each, { straightThrough: false })
  const importance = mul(add(greater(weights, 0.5), greater(weights, 0)).to(dtype), 0.5) as Tensor<D>
  return reshape(importance, weights.shape.slice(0, 3))
}
