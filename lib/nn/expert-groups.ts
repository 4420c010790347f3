import { noGrad, scope } from '../autograd/scope.js'
import { add, div, mul } from '../ops/binary.js'
import { combine } from '../ops/combine.js'
import { greater } from '../ops/compare.js'
import { dispatch } from '../ops/dispatch.js'
import { mean, sum } from '../ops/reduce.js'
import { reshape } from '../ops/reshape.js'
import type { lossOptions } from '../ops/route-options.js'
import { eachChoice, type RouteResult } from '../ops/routing.js'
import { concat, slice } from '../ops/strided.js'
import { relu } from '../ops/unary.js'
import { copyArray, fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import type { ValuesOf } from '../runtime/options.js'
import type { Tensor } from '../tensor/tensor.js'
import { type ExpertShare, eachExpert } from './expert-share.js'
import type { Module } from './module.js'
import type { MoEResult } from './moe-result.js'
import { type ExpertsCall, type Routed, RoutedExperts, scaled } from './routed-experts.js'

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
  /** E1 layers of E2 experts; null for those of other ranks. */
  readonly experts: readonly (GroupLayer | null)[]
  readonly #losses: ValuesOf<[typeof lossOptions]>
  readonly #outputDim: number

  /** {@link MoE} makes the layers, of `outputDim`; the factors are those of its losses. */
  constructor(
    experts: readonly (GroupLayer | null)[],
    losses: ValuesOf<[typeof lossOptions]>,
    outputDim: number,
    share: ExpertShare | null,
  ) {
    super(share)
    this.#outputDim = outputDim
    this.experts = experts
    this.#losses = losses
  }

  /** @internal */
  override expectGroupRandom(op: string): void {
    if (this.share) fail('UNSUPPORTED', op, 'groupRandom is not available with a processGroup: groups sample their own')
  }

  /** @internal */
  override updateExpertBias(rate: number): void {
    for (const layer of this.experts) layer?.updateExpertBias(rate)
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

  #apply<D extends DType>(
    x: Tensor<D>,
    routing: RouteResult<D>,
    { straightThrough, routedScalingFactor: factor }: ExpertsCall,
    random: readonly object[],
  ): Losses<D> & { outputs: Tensor<D> } {
    const importance = noGrad(() => scope(() => importanceOf(routing, x)))
    const slots = dispatch(x, routing, { straightThrough })
    const [E1, B, C] = slots.shape
    const [y, losses] = eachExpert(
      { op: 'MoE.forward', share: this.share, N: x.shape[1] },
      [slots, importance as Tensor<D>],
      [this.#outputDim, 2],
      (i, [rows, importance], N) => this.#callGroup(i, rows, importance, N, random[i]),
    )
    const counts = noGrad(() => sum(reshape(wholeOf(importance), [E1, B * C]), 1)) as Tensor<D>
    const atLeastOne = add(relu(add(sum(counts), -1)), 1)
    const combined = combine(y, routing)
    const ofGroups = (column: number) => reshape(slice(losses, 1, column, column + 1), [E1])
    return {
      outputs: factor === 1 ? combined : mul(combined, factor),
      balanceLoss: add(routing.balanceLoss, mean(ofGroups(0))),
      routerZLoss: add(routing.routerZLoss, div(sum(mul(ofGroups(1), counts)), atLeastOne)),
    }
  }

  /** Group i on its slots [B, C, D] of importance [B, C], cut into sequences of at most N → [B, C, O] and its two losses. */
  #callGroup<D extends DType>(
    i: number,
    rows: Tensor<D>,
    importance: Tensor,
    N: number,
    random: object | undefined,
  ): [y: Tensor<D>, losses: Tensor<D>] {
    const [B, C, D] = rows.shape
    const parts = partsOf(B * C, N)
    const sequences = [parts, (B * C) / parts]
    const { outputs, balanceLoss, routerZLoss } = this.experts[i]!.forward(reshape(rows, [...sequences, D]), {
      importance: reshape(importance, sequences),
      random,
    })
    const losses = concat([reshape(balanceLoss, [1]), reshape(routerZLoss, [1])], 0)
    return [reshape(outputs, [B, C, this.#outputDim]), losses]
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
