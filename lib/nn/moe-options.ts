import { type ActivationOptions, activationOptions } from '../ops/activation.js'
import { choiceOptions, routerOptions } from '../ops/route-options.js'
import { checkInteger, copyArray, fail } from '../runtime/check.js'
import { show } from '../runtime/errors.js'
import {
  boolean,
  integer,
  number,
  type Option,
  type OptionsOf,
  oneOf,
  onlyIf,
  onlyWhere,
  optional,
  rate,
  reader,
  unchecked,
} from '../runtime/options.js'
import type { Tensor } from '../tensor/tensor.js'
import { shareOptions } from './expert-share.js'
import { expertOptions } from './experts.js'
import {
  type GatingForwardOptions,
  gatingForwardOptions,
  maxChoices,
  type ownOptions as ownGatingOptions,
  passedToGating,
  type TopNGatingOptions,
} from './gating.js'
import { computeDType } from './linear.js'
import type { Module } from './module.js'
import { type SharedExpertsOptions, sharedOptions } from './shared-options.js'

const ownOptions = {
  /**
   * E. A pair [E1, E2] makes two levels (Mesh TensorFlow): a router chooses among E1 groups, in each of which another
   * chooses among E2 experts, over the slots of the group. `routing` is then that of the first level, and the losses are sums
   * over both. Default 16.
   */
  numExperts: {
    default: ({ experts }) => (Array.isArray(experts) ? experts.length : 16),
    check: (op, name, value) => {
      if (!Array.isArray(value)) return checkInteger(op, name, value, 1)
      const pair = copyArray(op, name, value, 2 ** 20)
      if (pair.length !== 2) fail('OPTION', op, `${name} must be a number or a pair, got ${show(value)}`)
      const most = 2 ** 16 // each group is a layer
      return [checkInteger(op, `${name}[0]`, pair[0], 1, most), checkInteger(op, `${name}[1]`, pair[1], 1)] as const
    },
  } as Option<number | readonly [number, number]>,
  ...onlyWhere(({ numExperts }) => (Array.isArray(numExperts) ? null : 'is for two levels, numExperts [E1, E2]'), {
    /** The capacity factor of the second level, in training and evaluation. Default 1. */
    capacityFactorSecondLevel: number({ min: 0, default: 1 }),
  }),
  ...onlyIf('router', ['topk'], {
    /**
     * K, experts per token. With 1 a gate is always 1 and the router learns from the losses alone, unless
     * `gateNormalization` is 'none', as with `router: 'switch'`. Default 2.
     */
    gatingTopN: integer({ min: 1, max: maxChoices, atMost: 'numExperts', default: 2 }),
  }),
  ...onlyIf('router', ['ntlb'], {
    /** How many experts a token asks for a slot, one after the other. Default 4, or E if that is less. */
    ntlbTopK: integer({
      min: 1,
      max: maxChoices,
      atMost: 'numExperts',
      default: ({ numExperts }) => Math.min(4, ...[numExperts as number | number[]].flat()),
    }),
  }),
  /**
   * G: the B · N tokens in order, cut into groups of G, which must divide B · N. Capacity, slots and the load-balancing loss
   * are per group, and `routing` has the shapes of x [B · N / G, G, D]. Default: a group is a sequence.
   */
  groupSize: optional(integer({ min: 1 })),
  /** Multiplies all combine weights (DeepSeek-V3). Default 1. */
  routedScalingFactor: number({ default: 1 }),
  ...onlyWhere(({ numExperts }) => (Array.isArray(numExperts) ? 'is not for two levels' : null), {
    /** The combine weight multiplies the input of an expert instead of its output (Llama 4). Default false. */
    scaleInput: boolean({ default: false }),
    /** E modules instead of the built-in experts, each called with [B, C, D] (empty slots are zero rows). */
    experts: unchecked<readonly Module[]>(),
  }),
  /** The dispatch weight is 1 forward but passes its gradient to the router. Default true. */
  straightThroughDispatchTensor: boolean({ default: true }),
  /** 'throw': a NaN or infinity in the input or output is a NON_FINITE error. Default 'propagate': only its rows become non-finite. */
  onNonFinite: oneOf(['propagate', 'throw'], { default: 'propagate' }),
}

const hiddenOptions = {
  /** The hidden size of the built-in experts is trunc(dim · mult · 2 / 3). Default 4. */
  expertHiddenMult: number({ min: 0, default: 4 }),
  /** H, the hidden size itself. Default: that of `expertHiddenMult`. */
  expertHiddenDim: optional(integer({ min: 1 })),
  /** Dropout of the hidden values of the built-in experts in training, see {@link ops.dropout}; not of shared ones. Default 0. */
  expertDropout: rate(),
  /**
   * 'bf16', 'bf16x3' or 'f16' rounds the operands of the built-in experts' GEMMs; their sums, the router, the losses
   * and all parameters stay f32 ({@link ComputeDType}). Default: dtype.
   */
  computeDtype: computeDType,
}

const builtInOptions = onlyWhere(({ experts }) => (experts === undefined ? null : 'is for the built-in experts'), {
  ...hiddenOptions,
  ...activationOptions,
  ...expertOptions,
  ...sharedOptions,
})

/** Options of {@link MoE}; `dim` is required. */
export interface MoEOptions
  extends OptionsOf<typeof routerOptions>,
    OptionsOf<typeof ownOptions>,
    OptionsOf<typeof choiceOptions>,
    OptionsOf<typeof shareOptions>,
    Omit<TopNGatingOptions, keyof typeof ownGatingOptions>,
    OptionsOf<typeof hiddenOptions>,
    OptionsOf<typeof expertOptions>,
    SharedExpertsOptions,
    ActivationOptions {}

const groups = [routerOptions, choiceOptions, ...passedToGating, ownOptions, shareOptions, builtInOptions] as const
type Joined<D extends readonly unknown[]> = D extends readonly [infer First, ...infer Rest]
  ? First & Joined<Rest>
  : unknown

/**
 * Every option of {@link MoE} as data: its default, range or words, and its check. For programs that offer some of them,
 * such as a form or a command line.
 *
 * @example
 * ```ts
 * console.log(moeOptions.router.allowed.length, moeOptions.activation.default) // → 5 geglu
 * ```
 */
export const moeOptions: Joined<typeof groups> = Object.assign({}, ...groups)

const read = reader(...groups)

/** Checked options of {@link MoE}. */
export type MoEValues = ReturnType<typeof read>

/** The checked values. Errors: OPTION, DTYPE, DEVICE, UNSUPPORTED. */
export function readOptions(op: string, options: unknown): MoEValues {
  const o = read(op, options)
  if (Array.isArray(o.numExperts) && o.router === 'expertChoice')
    fail('OPTION', op, 'router "expertChoice" is not for two levels: its tokens have no first choice')
  return o
}

/** The options of a layer of the second level. */
export function secondLevel(o: MoEValues, numExperts: number): MoEOptions {
  const capacityFactor = o.dropless ? undefined : o.capacityFactorSecondLevel
  return {
    ...(o as MoEOptions),
    numExperts,
    ntlbTopK: o.router === 'ntlb' ? o.ntlbTopK : undefined,
    ...{
      capacityFactorTrain: capacityFactor,
      capacityFactorEval: capacityFactor,
      capacityFactorSecondLevel: undefined,
    },
    ...{ groupSize: undefined, routerDim: undefined, routedScalingFactor: undefined },
    ...{ processGroup: undefined, allowVarSeqLen: undefined },
    ...{ sharedExperts: undefined, sharedHiddenDim: undefined, sharedExpertGate: undefined },
  }
}

/** A router by which tokens choose, in the options of {@link TopNGating}. */
export function choiceOf({ router, gatingTopN, ntlbTopK }: MoEValues): Partial<TopNGatingOptions> {
  if (router === 'ntlb') return { topN: ntlbTopK, ntlb: true }
  if (router === 'switchMax') return { topN: 1, batchPrioritized: true }
  return { topN: router === 'switch' ? 1 : gatingTopN }
}

const forwardOptions = {
  /** For `experts` of your own: each [B, N, D''] of the dtype of x; an expert gets their rows as further arguments. */
  expertInputs: unchecked<readonly Tensor[]>({ default: [] }),
  /** For two levels: what `random` is for the first, one for each group, in the shapes of its sequences. */
  groupRandom: unchecked<readonly NonNullable<GatingForwardOptions['random']>[]>(),
  /** Adds counts of tokens per expert to the result. Default false. */
  stats: boolean({ default: false }),
}

/** Options of {@link MoE.forward}. */
export interface MoEForwardOptions extends GatingForwardOptions, OptionsOf<typeof forwardOptions> {}

export const readForwardOptions = reader(gatingForwardOptions, forwardOptions)
