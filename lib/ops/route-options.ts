import type { Generator } from '../autograd/random.js'
import { fail } from '../runtime/check.js'
import {
  boolean,
  integer,
  number,
  type Option,
  type OptionsOf,
  oneOf,
  onlyIf,
  onlyIfSet,
  onlyWhere,
  optional,
  reader,
  unchecked,
  type ValuesOf,
} from '../runtime/options.js'
import type { Tensor } from '../tensor/tensor.js'

/** Factors of the losses, of every router. */
export const lossOptions = {
  /** Factor of the load-balancing loss in `totalAuxLoss`. Default 1e-2. */
  balanceLossCoef: number({ default: 1e-2 }),
  /** Factor of the router z-loss in `totalAuxLoss`. Default 1e-3. */
  routerZLossCoef: number({ default: 1e-3 }),
}

/** In the order of GateNormalization in native/core/ops/moe.h. */
export const gateNormalizations = ['topk', 'none', 'kept'] as const
/** In the order of BalanceDensity. */
export const balanceDensities = ['kept', 'assigned'] as const
/** In the order of SecondPolicy. */
export const secondPolicies = ['random', 'all', 'none', 'threshold'] as const

/** In the order of ScoreFunction. */
export const scoreFunctions = ['softmax', 'sigmoid', 'softmaxAfterTopk', 'sigmoidAfterTopk'] as const

/** Routers by which tokens choose, see {@link MoEOptions.router}. */
export const tokenRouters = ['topk', 'switch', 'switchMax', 'ntlb'] as const

export const routerOptions = {
  /**
   * 'topk': a token chooses its K experts ({@link ops.route}). 'switch': the same with one expert, whose combine weight is
   * its score (Switch Transformer, arXiv 2101.03961). 'switchMax': so, and an expert keeps the C tokens of largest weight.
   * 'ntlb' (no token left behind): the first of the `ntlbTopK` best experts that has a slot, weight as with 'switch'; the last
   * two from Mesh TensorFlow. 'expertChoice': an expert chooses its C tokens ({@link ops.expertChoice}), so loads are even.
   * With 'switchMax' and 'expertChoice' a token's output depends on later ones. Default 'topk'.
   */
  router: oneOf([...tokenRouters, 'expertChoice'], { default: 'topk' }),
}

type Others = Readonly<Record<string, unknown>>
const isNtlb = ({ router, ntlb }: Others): boolean => router === 'ntlb' || ntlb === true
const hasOneExpert = (others: Others): boolean =>
  isNtlb(others) || others.router === 'switch' || others.router === 'switchMax'

/** Numbers and switches of top-k routing that the op and the layers around it share. */
export const topkOptions = onlyIf('router', tokenRouters, {
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
  ...onlyWhere(
    ({ noiseGates, differentiableTopk, routingGroups }) => {
      const others = { noiseGates, differentiableTopk, routingGroups: routingGroups !== 1 }
      const [other] = Object.entries(others).find(([, used]) => used) ?? []
      return other ? `is not for ${other}` : null
    },
    {
      /**
       * The first expert of a token is sampled, in evaluation too: that of the largest logit / routerTemperature + Gumbel
       * noise. Its score is as of any other (Mesh TensorFlow). Default false.
       */
      sampleExperts: boolean({ default: false }),
    },
  ),
  ...onlyIfSet('sampleExperts', {
    /** The higher, the more random; 0 samples nothing. Default 1. */
    routerTemperature: number({ min: 0, default: 1 }),
  }),
  /**
   * In training the largest logit of a token is lowered by 1e9 with this probability, before everything else, so that its
   * second place is used (Mesh TensorFlow). Default 0.
   */
  secondPlaceProb: number({ min: 0, max: 1, default: 0 }),
  ...onlyIfSet('secondPlaceProb', {
    /** One of the other experts is sampled instead, with this temperature, and the rest lowered as well. Default: none is. */
    secondPlaceTemperature: optional(number({ min: 0 })),
  }),
  ...onlyWhere((others) => (isNtlb(others) ? "is 'assigned' for ntlb" : null), {
    /**
     * What the load-balancing loss counts. 'kept': dispatched top-1 assignments (st-moe-pytorch); 'assigned': all (Mesh
     * TensorFlow, ST-MoE paper). Default 'kept', for ntlb 'assigned', of all choices.
     */
    balanceDensity: oneOf(balanceDensities, { default: (others) => (isNtlb(others) ? 'assigned' : 'kept') }),
  }),
  ...onlyIf('dropless', [false], {
    ...onlyIf('router', ['topk', 'switch', 'ntlb'], {
      /**
       * Slots go to tokens by falling largest score of their experts, on ties in token order, instead of in token order
       * (Riquelme et al., arXiv 2106.05974). The score is not divided by others: with 'sigmoid…' the sigmoid of the logit,
       * else the probability over all experts, noise included and expertBias not. Default false.
       */
      batchPrioritized: boolean({ default: false }),
    }),
  }),
  ...onlyIf('router', ['topk'], {
    /**
     * Adds 0.5 · (E / B) · Σ_b Σ_e f2 · P2 to the load-balancing loss: f2 is the fraction of tokens whose second choice is e,
     * before policy and capacity, P2 the mean of the probabilities without the first choice, divided by their sum (Mesh
     * TensorFlow). Default false.
     */
    useSecondPlaceLoss: boolean({ default: false }),
    /**
     * What the scores of a token's experts are divided by to give its combine weights. 'topk': the sum over the K experts.
     * 'none': nothing. 'kept': the sum over those of its experts that were kept. Default 'topk', for 'sigmoidAfterTopk' and
     * ntlb 'none'.
     */
    gateNormalization: oneOf(gateNormalizations, {
      default: (others) => (hasOneExpert(others) || others.scoreFunction === 'sigmoidAfterTopk' ? 'none' : 'topk'),
    }),
  }),
  /** Floor of the sum of the chosen scores, and of a threshold. Default 1e-9. */
  eps: number({ min: 0, default: 1e-9 }),
})

/** An option for a tensor with values per token. */
export interface PerToken extends Option<Tensor | undefined> {
  /** Its shape, in the letters of {@link Routing}. */
  dims: readonly ('K' | 'B' | 'N' | 'E' | 'D')[]
}

/** A tensor of this shape, which its user checks. */
export const perToken = (...dims: PerToken['dims']): PerToken => ({ ...unchecked<Tensor>(), dims })

export const randomOptions = {
  /** [K, B, N] in [0, 1) instead of sampled numbers; row 0 is not used. */
  uniforms: perToken('K', 'B', 'N'),
  /** [B, N, E] in [0, 1), of noise, `sampleExperts` and `secondPlaceTemperature`. */
  gumbelUniforms: perToken('B', 'N', 'E'),
  /** [B, N] in [0, 1), of `secondPlaceProb`. */
  secondPlaceUniforms: perToken('B', 'N'),
}

export const randomNames = Object.keys(randomOptions) as (keyof typeof randomOptions)[]

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
  /**
   * No token left behind (Mesh TensorFlow): of its K choices a token uses the first that has a slot, slots in order of rank,
   * then token; `secondPolicy` is 'all'. Default false.
   */
  ntlb: boolean({ default: false }),
  /**
   * [B, N] in [0, 1], instead of a mask: 1 is a token as usual, 0 padding; others have their best expert at most, as a second
   * choice (none with ntlb or K = 1). f, P and the z-loss count tokens of importance 1, and f and P are means over all N (Mesh
   * TensorFlow). Another number is an OPTION error, on a GPU by the next operation that waits for it.
   */
  importance: unchecked<Tensor>(),
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

/** Whether K of E experts can be chosen so. */
export function checkChoice(
  op: string,
  {
    routingGroups,
    topGroups,
    useSecondPlaceLoss,
  }: Pick<ValuesOf<[typeof topkOptions]>, 'routingGroups' | 'topGroups' | 'useSecondPlaceLoss'>,
  E: number,
  K: number,
): void {
  if (useSecondPlaceLoss && K < 2) fail('OPTION', op, 'useSecondPlaceLoss needs at least two experts per token, got 1')
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
