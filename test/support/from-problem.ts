import { MoE, type MoEOptions, type StateDict, type Tensor, tensor } from '../../lib/index.js'
import type { Drawn } from './draw-problem.js'
import type { Float } from './golden-case.js'
import type { Problem } from './reference.js'

/** The state dict of the built-in experts and the router, in the reference's names. */
export function stateOf(p: Problem, dtype: Float): StateDict {
  const { D, E, H } = p
  const array = dtype === 'f64' ? Float64Array : Float32Array
  const part = (values: Float64Array, i: number, shape: number[]) => {
    const size = shape.reduce((a, b) => a * b, 1)
    return tensor(array.from(values.subarray(i * size, (i + 1) * size)), shape)
  }
  const thresholds = () => tensor(Float32Array.from(p.thresholds))
  const state: StateDict = {
    'gate.threshold_train': thresholds(),
    'gate.threshold_eval': thresholds(),
    'gate.to_gates.weight': part(p.router, 0, [E, D]),
    ...(p.expertBias && { 'gate.expert_bias': part(p.expertBias, 0, [E]) }),
  }
  for (let e = 0; e < E; e++) {
    state[`experts.experts.${e}.net.0.weight`] = part(p.w1, e, [2 * H, D])
    state[`experts.experts.${e}.net.0.bias`] = part(p.b1, e, [2 * H])
    state[`experts.experts.${e}.net.1.mult_bias`] = part(p.multBias, e, [H])
    state[`experts.experts.${e}.net.2.weight`] = part(p.w2, e, [D, H])
    state[`experts.experts.${e}.net.2.bias`] = part(p.b2, e, [D])
  }
  return state
}

/** The expertHiddenMult for hidden size H. */
const multOf = ({ D, H }: Problem): number => ((H + 0.5) * 3) / 2 / D

/** The options of a problem, except of its experts. */
export function optionsOf({ problem: p, capacityFactor, threshold }: Drawn): MoEOptions {
  return {
    dim: p.D,
    ...(p.ntlb ? { router: 'ntlb', ntlbTopK: p.K } : { gatingTopN: p.K }),
    thresholdTrain: threshold,
    thresholdEval: threshold,
    capacityFactorTrain: p.training ? capacityFactor : 1,
    capacityFactorEval: p.training ? 1 : capacityFactor,
    balanceLossCoef: p.balanceLossCoef,
    routerZLossCoef: p.routerZLossCoef,
    balanceDensity: p.assigned ? 'assigned' : 'kept',
    gateNormalization: p.normalization,
    secondPolicyTrain: p.training ? p.secondPolicy : 'random',
    secondPolicyEval: p.training ? 'random' : p.secondPolicy,
    scoreFunction: p.scoreFunction,
    expertBias: p.expertBias !== null,
    routingGroups: p.routingGroups,
    topGroups: p.topGroups,
    differentiableTopk: p.differentiableTopk,
    straightThroughDispatchTensor: p.straightThrough,
    noiseGates: p.gumbel !== null,
    noiseMult: p.noiseMult,
    ...choiceOptions(p),
  }
}

/** Options of the choice of experts, under the names of the layer and of `ops.route`. */
export const choiceOptions = (p: Problem) => ({
  batchPrioritized: p.prioritized,
  useSecondPlaceLoss: p.secondPlaceLoss,
  sampleExperts: p.temperature !== null,
  routerTemperature: p.temperature ?? undefined,
  secondPlaceProb: p.secondPlace?.prob,
  secondPlaceTemperature: p.secondPlace?.temperature ?? undefined,
})

/** The layer of a random problem, with its state. */
export function layerOf(drawn: Drawn, dtype: Float): MoE {
  const { problem: p } = drawn
  const moe = new MoE({ ...optionsOf(drawn), dtype, numExperts: p.E, expertHiddenMult: multOf(p) })
  moe.loadStateDict(stateOf(p, dtype))
  return moe.train(p.training)
}

export const toTensor = (data: Float64Array, shape: number[], dtype: Float): Tensor => tensor(data, shape, { dtype })

/** Random numbers and mask of a problem as options of `forward`. */
export function forwardOptions(p: Problem, dtype: Float) {
  const given = (data: Float64Array | null | undefined, shape: number[]) =>
    data ? toTensor(data, shape, dtype) : undefined
  return {
    random: {
      uniforms: toTensor(p.uniforms, [p.K, p.B, p.N], dtype),
      gumbelUniforms: given(p.gumbel ?? p.sampling, [p.B, p.N, p.E]),
      secondPlaceUniforms: given(p.secondPlace?.uniforms, [p.B, p.N]),
    },
    mask: p.mask ? tensor(p.mask, [p.B, p.N]) : undefined,
    importance: given(p.importance, [p.B, p.N]),
  }
}
