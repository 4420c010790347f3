import { fail } from '../check.js'
import {
  boolean,
  integer,
  number,
  type OptionsOf,
  oneOf,
  onlyIf,
  onlyWhere,
  reader,
  unchecked,
  type ValuesOf,
} from '../options.js'
import type { Generator } from '../random.js'
import type { Tensor } from '../tensor.js'

export const routerOptions = {
  /**
   * 'topk': a token chooses its K experts ({@link ops.route}). 'switch': the same with one expert, whose combine weight is
   * its score (Switch Transformer, arXiv 2101.03961). 'expertChoice': an expert chooses its C tokens
   * ({@link ops.expertChoice}), so loads are even, and a token's output depends on later ones. Default 'topk'.
   */
  router: oneOf(['topk', 'switch', 'expertChoice'], { default: 'topk' }),
}

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

/** In the order of ScoreFunction. */
export const scoreFunctions = ['softmax', 'sigmoid', 'softmaxAfterTopk', 'sigmoidAfterTopk'] as const

/** Numbers and switches of top-k routing that the op and the layers around it share. */
export const topkOptions = onlyIf('router', ['topk', 'switch'], {
  /**
   * The scores of which the gates are made. 'softmax' and 'sigmoid' (DeepSeek-V3, arXiv 2412.19437) are of the logits, and
   * the K experts of the largest scores are chosen. With 'softmaxAfterTopk' (gpt-oss) and 'sigmoidAfterTopk' (Llama 4) the
   * K largest logits are, and scores are made of those. Default 'softmax'.
   */
  scoreFunction: oneOf(scoreFunctions, { default: 'softmax' }),
  /** The experts are in that many equal groups of neighbors, and a token may choose from `topGroups` of them. Default 1. */
  routingGroups: integer({ min: 1, default: 1 }),
  /**
   * A group counts as the sum of the two best scores in it, `expertBias` included (DeepSeek-V3, arXiv 2412.19437, §2.1.2).
   * Default 1.
   */
  topGroups: integer({ min: 1, atMost: 'routingGroups', default: 1 }),
  ...onlyIf('scoreFunction', ['softmax'], {
    ...onlyWhere(
      ({ expertBias, routingGroups }) =>
        expertBias ? 'is not for expertBias' : routingGroups !== 1 ? 'is not for routingGroups' : null,
      {
        /**
         * Gates by 20 iterations of coordinate descent, so that every expert's score gets a gradient (CoLT5, arXiv
         * 2303.09752). Default false.
         */
        differentiableTopk: boolean({ default: false }),
      },
    ),
    /** Adds Gumbel noise to the logits, in evaluation too: noiseMult · −log(−log u), u uniform in [0, 1). Default false. */
    noiseGates: boolean({ default: false }),
    /** Factor of the noise. Default 1. */
    noiseMult: number({ default: 1 }),
  }),
  /**
   * What the load-balancing loss counts. 'kept': dispatched top-1 assignments (st-moe-pytorch); 'assigned': all (Mesh
   * TensorFlow, ST-MoE paper). Default 'kept'.
   */
  balanceDensity: oneOf(['kept', 'assigned'], { default: 'kept' }),
  ...onlyIf('router', ['topk'], {
    /**
     * What the scores of a token's experts are divided by to give its combine weights. 'topk': the sum over the K experts.
     * 'none': nothing. 'kept': the sum over those of its experts that were kept. Default 'topk', for 'sigmoidAfterTopk' 'none'.
     */
    gateNormalization: oneOf(gateNormalizations, {
      default: ({ router, scoreFunction }) =>
        router === 'switch' || scoreFunction === 'sigmoidAfterTopk' ? 'none' : 'topk',
    }),
  }),
  /** Floor of the sum of the chosen scores, and of a threshold. Default 1e-9. */
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
  /**
   * [E] of the dtype of x, added to what experts are chosen by, and to nothing else (loss-free balancing, arXiv 2408.15664).
   * No gradient. Default: none.
   */
  expertBias: unchecked<Tensor>(),
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

/** Whether E experts can be in such groups, and K of them be chosen. */
export function checkGroups(
  op: string,
  { routingGroups, topGroups }: Pick<ValuesOf<[typeof topkOptions]>, 'routingGroups' | 'topGroups'>,
  E: number,
  K: number,
): void {
  if (E % routingGroups !== 0) fail('OPTION', op, `routingGroups must divide the ${E} experts, got ${routingGroups}`)
  const experts = (E / routingGroups) * topGroups
  if (K > experts)
    fail(
      'OPTION',
      op,
      `topGroups must hold at least the ${K} experts of a token, got ${topGroups} with ${experts} experts`,
    )
}

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
