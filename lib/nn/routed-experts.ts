import { mul } from '../ops/binary.js'
import { sum } from '../ops/reduce.js'
import { reshape } from '../ops/reshape.js'
import { eachChoice, type RouteResult, type Routing } from '../ops/routing.js'
import { copyArray, fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { ones } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'
import type { ExpertShare } from './expert-share.js'
import { Module } from './module.js'

/** How a layer applies its experts: its options, and what a forward was given for them. */
export interface ExpertsCall {
  /** Factor of all combine weights. */
  routedScalingFactor: number
  /** See {@link ops.ExpertFfnOptions.straightThrough}. */
  straightThrough: boolean
  /** The combine weight multiplies the input of an expert instead of its output. */
  scaleInput: boolean
  /** There is no capacity. */
  dropless: boolean
  /** Dropout of the hidden values of built-in experts; 0 in evaluation. */
  dropout: number
  /** Further inputs of the tokens, each [B, N, …]. */
  inputs: readonly Tensor[]
  /** Random numbers of each group, not yet checked; undefined: sampled. */
  groupRandom: unknown
}

/** The outputs [B, N, O] of the tokens, and the routing with its final weights and losses. */
export type Routed<D extends DType> = RouteResult<D> & { outputs: Tensor<D> }

/**
 * The experts of a layer behind its router. {@link MoE} knows only this class; built-in experts, custom ones and groups
 * differ in what they override.
 * @internal
 */
export abstract class RoutedExperts extends Module {
  readonly #share: ExpertShare | null

  /** `share`: which of them this rank has; null for all. */
  constructor(share: ExpertShare | null) {
    super()
    this.#share = share
  }

  /** @internal */
  get share(): ExpertShare | null {
    return this.#share
  }

  override stateElsewhere(): Iterable<string> {
    return this.#share?.namesElsewhere() ?? []
  }

  /**
   * x [B, N, D] and the routing of its tokens → Σ weight · expert(x).
   * @internal
   */
  abstract run<D extends DType>(x: Tensor<D>, routing: RouteResult<D>, call: ExpertsCall): Routed<D>

  /**
   * Returns the further inputs of a forward on x [B, N, D], checked; only custom experts take any.
   * @internal
   */
  checkInputs(op: string, _x: Tensor, inputs: unknown): readonly Tensor[] {
    const list = copyInputs(op, inputs)
    if (list.length > 0) fail('OPTION', op, 'expertInputs is for experts of your own')
    return []
  }

  /**
   * Throws unless these experts take random numbers per group.
   * @internal
   */
  expectGroupRandom(op: string): void {
    fail('OPTION', op, 'groupRandom is for two levels, numExperts [E1, E2]')
  }

  /**
   * Updates the bias of every router among the experts.
   * @internal
   */
  updateExpertBias(_rate: number): void {}
}

/** The entries of the option `expertInputs`. */
export const copyInputs = (op: string, inputs: unknown): unknown[] => copyArray(op, 'expertInputs', inputs, 2 ** 20)

/** The routing with all weights multiplied by `factor`. */
export const scaled = <D extends DType>(routing: RouteResult<D>, factor: number): RouteResult<D> =>
  factor === 1 ? routing : { ...routing, weight: mul(routing.weight, factor) }

/** Computes Σ weight · expert(x) for a routing. */
export type ApplyExperts<D extends DType> = (
  x: Tensor<D>,
  routing: Routing<D>,
  inputs: readonly Tensor[],
  straightThrough: boolean,
) => Tensor<D>

/** {@link RoutedExperts.run} of experts that `apply` computes. */
export function runExperts<D extends DType>(
  x: Tensor<D>,
  choice: RouteResult<D>,
  { routedScalingFactor, scaleInput, inputs, straightThrough }: ExpertsCall,
  apply: ApplyExperts<D>,
): Routed<D> {
  const routing = scaled(choice, routedScalingFactor)
  const outputs = scaleInput ? applyToScaled(x, routing, inputs, apply) : apply(x, routing, inputs, straightThrough)
  return { ...routing, outputs }
}

/** Each assignment as a token of its own: its input is weight · x, and the K outputs are added up. */
function applyToScaled<D extends DType>(
  x: Tensor<D>,
  routing: RouteResult<D>,
  inputs: readonly Tensor[],
  apply: ApplyExperts<D>,
): Tensor<D> {
  const [B, N, K] = routing.expertIndex.shape
  const each = (input: Tensor, weight: Tensor) =>
    reshape(mul(reshape(input, [B, N, 1, input.shape[2]]), reshape(weight, [B, N, K, 1])), [B, N * K, input.shape[2]])
  const alone = eachChoice(routing, routing.kept.to(x.dtype))
  const more = inputs.map((input) => each(input, ones([B, N, K], { dtype: x.dtype, device: x.device })))
  const y = apply(each(x, routing.weight) as Tensor<D>, alone, more, false)
  return sum(reshape(y, [B, N, K, y.shape[2]]), 2)
}
