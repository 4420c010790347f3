import { checkNumber, copyArray, fail } from '../check.js'
import { tensor } from '../create.js'
import type { Device } from '../device.js'
import type { DType } from '../dtype.js'
import { show } from '../errors.js'
import { route } from '../ops/route.js'
import { lossOptions, type RoutingRandom, randomOptions, secondPolicies, topkOptions } from '../ops/route-options.js'
import { expertCapacity, type RouteResult } from '../ops/routing.js'
import {
  boolean,
  integer,
  number,
  type OptionsOf,
  oneOf,
  onlyIf,
  pick,
  reader,
  unchecked,
  type ValuesOf,
} from '../options.js'
import { allOrNone, keep } from '../scope.js'
import { checkTensor, type Tensor } from '../tensor.js'
import { type LayerOptions, Linear, layerOptions } from './linear.js'
import { Module, type StateEntry } from './module.js'

/** K that the native code takes. */
export const maxChoices = 2 ** 20

const ownOptions = {
  /** E */
  numGates: integer({ min: 1 }),
  /** K. Default 2. */
  topN: integer({ min: 1, max: maxChoices, atMost: 'numGates', default: 2 }),
}

/** Of every router, under the same names in a layer that has one. */
export const gatingOptions = {
  /** D */
  dim: integer({ min: 1 }),
  ...onlyIf('dropless', [false], {
    /** See {@link ops.expertCapacity}. Default 1.25. */
    capacityFactorTrain: number({ min: 0, default: 1.25 }),
    /** The same in evaluation. Default 2. */
    capacityFactorEval: number({ min: 0, default: 2 }),
    /** The least capacity, also of short sequences. Default 4. */
    minExpertCapacity: integer({ min: 0, max: 2 ** 31 - 1, default: 4 }),
  }),
}

/** Of top-k gating. */
export const thresholdOptions = onlyIf('router', ['topk'], {
  /** Which second and later experts are used in training, see {@link ops.RouteOptions.secondPolicy}. Default 'random'. */
  secondPolicyTrain: oneOf(secondPolicies, { default: 'random' }),
  /** The same in evaluation. Default 'random'. */
  secondPolicyEval: oneOf(secondPolicies, { default: 'random' }),
  /** The threshold of 'random' and 'threshold': a number, or one for each expert after the first. Default 0.2. */
  thresholdTrain: unchecked<number | readonly number[]>({ default: 0.2 }),
  /** The same in evaluation. Default 0.2. */
  thresholdEval: unchecked<number | readonly number[]>({ default: 0.2 }),
})

export const droplessOptions = onlyIf('router', ['topk'], {
  /** No capacity: every routed assignment is dispatched, as with the capacity N. Default false. */
  dropless: boolean({ default: false }),
})

/** What a layer passes on to its router. */
type Passed = readonly [
  typeof droplessOptions,
  typeof gatingOptions,
  typeof thresholdOptions,
  typeof lossOptions,
  typeof topkOptions,
  typeof layerOptions,
]
export const passedToGating: Passed = [
  droplessOptions,
  gatingOptions,
  thresholdOptions,
  lossOptions,
  topkOptions,
  layerOptions,
]

/** Options of {@link TopNGating}. */
export interface TopNGatingOptions
  extends OptionsOf<typeof ownOptions>,
    OptionsOf<typeof droplessOptions>,
    OptionsOf<typeof gatingOptions>,
    OptionsOf<typeof thresholdOptions>,
    OptionsOf<typeof lossOptions>,
    OptionsOf<typeof topkOptions>,
    LayerOptions {}

const readOptions = reader(ownOptions, ...passedToGating)

export const gatingForwardOptions = {
  /** Numbers to use instead of sampled ones. */
  random: unchecked<RoutingRandom>(),
  /** [B, N], 0 for padding: see {@link ops.RouteOptions.mask}. */
  mask: unchecked<Tensor>(),
  /** Default: that of the layer. */
  noiseGates: unchecked<boolean>(),
  /** Default: that of the layer. */
  noiseMult: unchecked<number>(),
}

/** Options of one forward of a router. */
export interface GatingForwardOptions extends OptionsOf<typeof gatingForwardOptions> {}

export const readForwardOptions = reader(gatingForwardOptions)
const readRandom = reader(randomOptions)

/** f32 [K]: eps, then the thresholds. */
function thresholdBuffer(op: string, name: string, value: unknown, K: number, eps: number, device: Device): Tensor {
  const list = Array.isArray(value) ? copyArray(op, name, value, 2 ** 20) : Array(K - 1).fill(value)
  if (list.length !== K - 1)
    fail(
      'OPTION',
      op,
      `${name} must be a number or ${K - 1} numbers (one for each expert after the first), got ${show(value)}`,
    )
  const values = list.map((entry, i) => checkNumber(op, Array.isArray(value) ? `${name}[${i}]` : name, entry))
  return keep(tensor(Float32Array.from([eps, ...values]), [K], { device }))
}

/** C of a router in its mode. */
export const capacityOf = (
  { numGates, training }: { numGates: number; training: boolean },
  N: number,
  { capacityFactorTrain, capacityFactorEval, minExpertCapacity }: ValuesOf<[typeof gatingOptions]>,
): number => expertCapacity(N, numGates, training ? capacityFactorTrain : capacityFactorEval, minExpertCapacity)

/**
 * The router: top-N gating with stochastic thresholds and capacity, by {@link ops.route}. State: `to_gates.weight` [E, D]
 * and two threshold buffers, under the names of st-moe-pytorch.
 *
 * @example
 * ```ts
 * const gate = new TopNGating({ dim: 32, numGates: 4 })
 * const { expertIndex, capacity } = gate.forward(randn([2, 16, 32]))
 * console.log(expertIndex.shape, capacity) // → [ 2, 16, 2 ] 5
 * ```
 */
export class TopNGating extends Module {
  /** K */
  readonly topN: number
  /** E */
  readonly numGates: number
  /** D → E, without bias; weight uniform in ±1/√D at the start. */
  readonly toGates: Linear
  /** f32 [K], the first entry not used. */
  readonly thresholdTrain: Tensor
  /** f32 [K], for evaluation. */
  readonly thresholdEval: Tensor
  readonly #capacity: ValuesOf<[typeof droplessOptions, typeof gatingOptions]>
  readonly #router: ValuesOf<[typeof lossOptions, typeof topkOptions]>
  readonly #secondPolicy: Record<'train' | 'eval', (typeof secondPolicies)[number]>

  /** Errors: OPTION, DTYPE, DEVICE; they name `op`. */
  constructor(options: TopNGatingOptions, op = 'TopNGating') {
    super()
    const o = readOptions(op, options)
    this.numGates = o.numGates
    this.topN = o.topN
    this.#capacity = pick(o, droplessOptions, gatingOptions)
    this.#router = pick(o, lossOptions, topkOptions)
    this.#secondPolicy = { train: o.secondPolicyTrain, eval: o.secondPolicyEval }
    ;[this.toGates, this.thresholdTrain, this.thresholdEval] = allOrNone(() => [
      new Linear(o.dim, o.numGates, { ...pick(o, layerOptions), bias: false }),
      thresholdBuffer(op, 'thresholdTrain', o.thresholdTrain, o.topN, o.eps, o.device),
      thresholdBuffer(op, 'thresholdEval', o.thresholdEval, o.topN, o.eps, o.device),
    ])
  }

  /** x [B, N, D] → where its tokens go, and the losses (0 in evaluation). Errors: SHAPE, DTYPE, DEVICE, OPTION. */
  forward<D extends DType>(x: Tensor<D>, options?: GatingForwardOptions): RouteResult<D> {
    const op = 'TopNGating.forward'
    const o = readForwardOptions(op, options)
    checkTensor(op, 'x', x)
    const router = this.#router
    const N = x.shape[1] ?? 0
    return route(x, this.toGates.weight, {
      topN: this.topN,
      capacity: this.#capacity.dropless ? N : capacityOf(this, N, this.#capacity),
      threshold: this.training ? this.thresholdTrain : this.thresholdEval,
      secondPolicy: this.#secondPolicy[this.training ? 'train' : 'eval'],
      training: this.training,
      mask: o.mask,
      ...readRandom(op, o.random),
      ...router,
      noiseGates: o.noiseGates ?? router.noiseGates,
      noiseMult: o.noiseMult ?? router.noiseMult,
    })
  }

  /** Thresholds and the weight of the router. */
  override *stateEntries(): Iterable<StateEntry> {
    yield { name: 'threshold_train', tensor: this.thresholdTrain }
    yield { name: 'threshold_eval', tensor: this.thresholdEval }
    yield { name: 'to_gates.weight', tensor: this.toGates.weight }
  }

  protected override stateName(property: string): string {
    return property === 'toGates' ? 'to_gates' : property
  }
}
