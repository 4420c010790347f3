import { boolean, number, type OptionsOf, oneOf, onlyIf, reader, unchecked } from '../options.js'
import type { Generator } from '../random.js'
import type { Tensor } from '../tensor.js'

/** Factors of the losses, of every router. */
export const lossOptions = {
  /** Factor of the load-balancing loss in `totalAuxLoss`. Default 1e-2. */
  balanceLossCoef: number({ default: 1e-2 }),
  /** Factor of the router z-loss in `totalAuxLoss`. Default 1e-3. */
  routerZLossCoef: number({ default: 1e-3 }),
}

/** In the order of GateNormalization in native/core/op_args.h. */
export const gateNormalizations = ['topk', 'none', 'kept'] as const
/** In the order of SecondPolicy. */
export const secondPolicies = ['random', 'all', 'none', 'threshold'] as const

/** Numbers and switches of top-k routing that the op and the layers around it share. */
export const topkOptions = onlyIf('router', ['topk'], {
  /**
   * Gates by 20 iterations of coordinate descent, so that every expert's score gets a gradient (CoLT5, arXiv
   * 2303.09752). Default false.
   */
  differentiableTopk: boolean({ default: false }),
  /** Adds Gumbel noise to the logits, in evaluation too: noiseMult · −log(−log u), u uniform in [0, 1). Default false. */
  noiseGates: boolean({ default: false }),
  /** Factor of the noise. Default 1. */
  noiseMult: number({ default: 1 }),
  /**
   * What the load-balancing loss counts. 'kept': dispatched top-1 assignments (st-moe-pytorch); 'assigned': all (Mesh
   * TensorFlow, ST-MoE paper). Default 'kept'.
   */
  balanceDensity: oneOf(['kept', 'assigned'], { default: 'kept' }),
  /**
   * What the scores of a token's experts are divided by to give its combine weights. 'topk': the sum over the K experts.
   * 'none': nothing. 'kept': the sum over those of its experts that were kept. Default 'topk'.
   */
  gateNormalization: oneOf(gateNormalizations, { default: 'topk' }),
  /** Floor of the sum of the chosen probabilities, and of a threshold. Default 1e-9. */
  eps: number({ min: 0, default: 1e-9 }),
})

export const randomOptions = {
  /** [K, B, N] in [0, 1) instead of sampled numbers; row 0 is not used. */
  uniforms: unchecked<Tensor>(),
  /** [B, N, E] in [0, 1), with noise. */
  gumbelUniforms: unchecked<Tensor>(),
}

/** Random numbers of the caller, so that a routing can be repeated. */
export interface RoutingRandom extends OptionsOf<typeof randomOptions> {}

/** What every router takes in a forward. */
export const tokenOptions = {
  /** C. Default: that of {@link expertCapacity} for `capacityFactor`. */
  capacity: unchecked<number>(),
  /** Default 1.25. */
  capacityFactor: number({ min: 0, default: 1.25 }),
  /** Losses are computed. Default true. */
  training: boolean({ default: true }),
  /**
   * [B, N] of any dtype and on any device; 0 is padding (not routed, takes no slot, counts in no loss), any other number
   * is a token, NaN an error.
   */
  mask: unchecked<Tensor>(),
}

export const routeOptions = {
  /** K, experts per token. Default 2. */
  topN: unchecked<number>({ default: 2 }),
  /** See `secondPolicy`: f32 [K], first entry not used; or a number for all of them. Default 0.2. */
  threshold: unchecked<Tensor | number>({ default: 0.2 }),
  /**
   * Which second and later experts are used, by their gate g, which is normalised over the K experts. 'random': with
   * probability min(1, g / threshold) (GShard, arXiv 2006.16668). 'all': each. 'none': none. 'threshold': those with
   * g > threshold (Mesh TensorFlow). Default 'random'.
   */
  secondPolicy: oneOf(secondPolicies, { default: 'random' }),
  /** Default: that of {@link manualSeed}. */
  generator: unchecked<Generator>(),
}

/** Options of {@link route}. */
export interface RouteOptions
  extends OptionsOf<typeof routeOptions>,
    OptionsOf<typeof tokenOptions>,
    OptionsOf<typeof lossOptions>,
    OptionsOf<typeof topkOptions>,
    RoutingRandom {}

export const readRouteOptions = reader(routeOptions, tokenOptions, lossOptions, topkOptions, randomOptions)

export const choiceOptions = onlyIf('router', ['expertChoice'], {
  /**
   * Over what scores s are a softmax. 'tokens': those of the sequence, and a token's weights are s / (number of experts
   * that took it) (Mesh TensorFlow). 'experts': weights are s (Zhou et al., arXiv 2202.09368); no load-balancing loss, as
   * loads are even. Default 'tokens'.
   */
  expertChoiceOver: oneOf(['tokens', 'experts'], { default: 'tokens' }),
})

/** Options of {@link expertChoice}. */
export interface ExpertChoiceOptions
  extends OptionsOf<typeof choiceOptions>,
    OptionsOf<typeof tokenOptions>,
    OptionsOf<typeof lossOptions> {}

export const readExpertChoiceOptions = reader(choiceOptions, tokenOptions, lossOptions)
