import { isComputingAgain } from '../autograd/context.js'
import { allOrNone, keep, noGrad, scope } from '../autograd/scope.js'
import { allReduce } from '../ops/all-reduce.js'
import { mul } from '../ops/binary.js'
import { overwrite } from '../ops/copy.js'
import { reshape } from '../ops/reshape.js'
import { routeWith } from '../ops/route.js'
import {
  checkChoice,
  lossOptions,
  perToken,
  type RoutingRandom,
  randomNames,
  randomOptions,
  readRouteOptions,
  secondPolicies,
  tokenRouters,
  topkOptions,
} from '../ops/route-options.js'
import { expertCapacity, type RouteResult } from '../ops/routing.js'
import { checkNumber, copyArray, fail } from '../runtime/check.js'
import type { Device } from '../runtime/device.js'
import type { DType } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import {
  boolean,
  integer,
  number,
  type OptionsOf,
  oneOf,
  onlyIf,
  optional,
  pick,
  reader,
  unchecked,
  type ValuesOf,
} from '../runtime/options.js'
import type { ProcessGroup } from '../runtime/process-group.js'
import { ones, tensor, zeros } from '../tensor/create.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { type LayerOptions, type Linear, layerOptions, RouterLinear } from './linear.js'
import { Module } from './module.js'
import { inputRandomOptions, type RouterInputRandom, routerInputOptions, routerInputs } from './router-input.js'
import type { StateEntry } from './state.js'

/** K that the native code takes. */
export const maxChoices = 2 ** 20

export const ownOptions = {
  /** E */
  numGates: integer({ min: 1 }),
  /** K. Default 2. */
  topN: integer({ min: 1, max: maxChoices, atMost: 'numGates', default: 2 }),
  /** See {@link ops.RouteOptions.ntlb}. Default false. */
  ntlb: boolean({ default: false }),
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

/** Of routers by which tokens choose. */
export const tokenChoiceOptions = {
  ...onlyIf('router', ['topk', 'switch'], {
    /** No capacity: every routed assignment is dispatched, as with the capacity N. Default false. */
    dropless: boolean({ default: false }),
  }),
  ...onlyIf('router', tokenRouters, {
    /**
     * A buffer [E], zeros at first, that is added to what experts are chosen by and to nothing else:
     * {@link TopNGating.updateExpertBias} evens out loads without a loss (arXiv 2408.15664). Default false.
     */
    expertBias: boolean({ default: false }),
  }),
}

/** What a layer passes on to its router. */
type Passed = readonly [
  typeof tokenChoiceOptions,
  typeof gatingOptions,
  typeof routerInputOptions,
  typeof thresholdOptions,
  typeof lossOptions,
  typeof topkOptions,
  typeof layerOptions,
]
export const passedToGating: Passed = [
  tokenChoiceOptions,
  gatingOptions,
  routerInputOptions,
  thresholdOptions,
  lossOptions,
  topkOptions,
  layerOptions,
]

/** Options of {@link TopNGating}. */
export interface TopNGatingOptions
  extends OptionsOf<typeof ownOptions>,
    OptionsOf<typeof tokenChoiceOptions>,
    OptionsOf<typeof gatingOptions>,
    OptionsOf<typeof routerInputOptions>,
    OptionsOf<typeof thresholdOptions>,
    OptionsOf<typeof lossOptions>,
    OptionsOf<typeof topkOptions>,
    LayerOptions {}

const readOptions = reader(ownOptions, ...passedToGating)

/** Values per token that a router takes besides x. */
export const tokenInputOptions = {
  /** [B, N], 0 for padding: see {@link ops.RouteOptions.mask}. */
  mask: perToken('B', 'N'),
  /** [B, N] in [0, 1], instead of a mask: see {@link ops.RouteOptions.importance}. */
  importance: perToken('B', 'N'),
  /**
   * [B, N, D'] of the dtype of x, that the router sees instead of x (Mesh TensorFlow: word embeddings). D' is D, or the
   * `routerDim` of the layer, which then always needs it.
   */
  routerInput: perToken('B', 'N', 'D'),
}

export const gatingForwardOptions = {
  /** Numbers to use instead of sampled ones. */
  random: unchecked<RoutingRandom & RouterInputRandom>(),
  ...tokenInputOptions,
  /** Default: that of the layer. */
  noiseGates: optional(topkOptions.noiseGates),
  /** Default: that of the layer. */
  noiseMult: optional(topkOptions.noiseMult),
}

/** Options of one forward of a router. */
export interface GatingForwardOptions extends OptionsOf<typeof gatingForwardOptions> {}

export const readForwardOptions = reader(gatingForwardOptions)
/** What a router takes as `random`, checked. */
export const readRandom = reader(randomOptions, inputRandomOptions)

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

/** f32 [E, 1]: how many tokens chose each expert, padding excluded. */
function loadOf({ expertIndex, mask }: RouteResult, E: number): Tensor {
  const { shape, device } = expertIndex
  const each = ones([...shape, 1], { device })
  const counted = mask ? mul(each, reshape(mask.to('f32'), [shape[0], shape[1], 1, 1])) : each
  const dy = reshape(counted, [expertIndex.size, 1])
  const counts = native.embeddingBackward({ dy: handleOf(dy), index: handleOf(expertIndex), V: E })
  return wrap(counts, { shape: [E, 1], dtype: 'f32', device })
}

/** C of a router in its mode. */
export const capacityOf = (
  { numGates, training }: { numGates: number; training: boolean },
  N: number,
  { capacityFactorTrain, capacityFactorEval, minExpertCapacity }: ValuesOf<[typeof gatingOptions]>,
): number => expertCapacity(N, numGates, training ? capacityFactorTrain : capacityFactorEval, minExpertCapacity)

/**
 * What the routers of the layer that runs will have to count. No argument hands it down: a user's `forward` may stand
 * between the layer and its router.
 */
let uncounted: Uncounted[] | null = null
interface Uncounted {
  load: Tensor
  counts: Tensor
}

/** Runs the forward of a layer: its routers, also those of layers in it, count their loads once it has succeeded. */
export function countingLoads<T>(forward: () => T): T {
  if (uncounted) return forward()
  const loads: Uncounted[] = []
  uncounted = loads
  try {
    const value = forward()
    for (const { load, counts } of loads) native.addInPlace(handleOf(load), handleOf(counts))
    return value
  } finally {
    uncounted = null
    for (const { counts } of loads) counts.dispose()
  }
}

/** For a router without {@link TopNGating.expertBias}. */
export function failWithoutBias(op: string): never {
  fail('OPTION', op, 'the router needs expertBias: true')
}

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
  /** D → E, with a bias if there is `routerBias`; uniform in ±1/√D at the start. */
  readonly toGates: Linear
  /** f32 [K], the first entry not used. */
  readonly thresholdTrain: Tensor
  /** f32 [K], for evaluation. */
  readonly thresholdEval: Tensor
  /** [E] of the option `expertBias`, or null. */
  readonly expertBias: Tensor | null
  readonly #capacity: ValuesOf<[typeof tokenChoiceOptions, typeof gatingOptions]>
  readonly #routing: Record<'train' | 'eval', ReturnType<typeof readRouteOptions>>
  readonly #inputs: ValuesOf<[typeof routerInputOptions]>
  /** f32 [E, 1], how many tokens chose each expert since the last update of the bias; null without one. */
  readonly #load: Tensor | null
  /** @internal The ranks whose loads count; null for this process alone. */
  loadGroup: ProcessGroup | null = null

  /** Errors: OPTION, DTYPE, DEVICE; they name `op`. */
  constructor(options: TopNGatingOptions, op = 'TopNGating') {
    super()
    const o = readOptions(op, options)
    this.numGates = o.numGates
    this.topN = o.topN
    this.#capacity = pick(o, tokenChoiceOptions, gatingOptions)
    this.#inputs = pick(o, routerInputOptions)
    const routing = (training: boolean, secondPolicy: (typeof secondPolicies)[number]) =>
      readRouteOptions(op, {
        topN: o.topN,
        ntlb: o.ntlb,
        training,
        secondPolicy,
        ...pick(o, lossOptions, topkOptions),
      })
    this.#routing = { train: routing(true, o.secondPolicyTrain), eval: routing(false, o.secondPolicyEval) }
    checkChoice(op, o, o.numGates, o.topN)
    ;[this.toGates, this.thresholdTrain, this.thresholdEval, this.expertBias, this.#load] = allOrNone(() => [
      new RouterLinear(o.routerDim ?? o.dim, o.numGates, { ...pick(o, layerOptions), bias: o.routerBias }),
      thresholdBuffer(op, 'thresholdTrain', o.thresholdTrain, o.topN, o.eps, o.device),
      thresholdBuffer(op, 'thresholdEval', o.thresholdEval, o.topN, o.eps, o.device),
      o.expertBias ? keep(zeros([o.numGates], pick(o, layerOptions))) : null,
      o.expertBias ? keep(zeros([o.numGates, 1], { device: o.device })) : null,
    ])
  }

  /** x [B, N, D] → where its tokens go, and the losses (0 in evaluation). Errors: SHAPE, DTYPE, DEVICE, OPTION. */
  forward<D extends DType>(x: Tensor<D>, options?: GatingForwardOptions): RouteResult<D> {
    const op = 'TopNGating.forward'
    const o = readForwardOptions(op, options)
    checkTensor(op, 'x', x)
    const N = x.shape[1] ?? 0
    const random = readRandom(op, o.random)
    const inputs = { ...this.#inputs, routerInput: o.routerInput, training: this.training }
    const routing = { ...this.#routing[this.training ? 'train' : 'eval'] }
    routing.capacity = this.#capacity.dropless ? N : capacityOf(this, N, this.#capacity)
    routing.threshold = this.training ? this.thresholdTrain : this.thresholdEval
    routing.mask = o.mask
    routing.importance = o.importance
    routing.expertBias = this.expertBias ?? undefined
    routing.noiseGates = o.noiseGates ?? routing.noiseGates
    routing.noiseMult = o.noiseMult ?? routing.noiseMult
    for (const name of randomNames) routing[name] = random[name]
    const result = routeWith(...routerInputs(op, x, this.toGates, inputs, random), routing)
    countingLoads(() => this.#countLoad(result))
    return result
  }

  /**
   * Moves `expertBias` by rate · sign(mean load − load): experts that were chosen less often than the others will be more
   * often (loss-free balancing, arXiv 2408.15664). The load counts the tokens that chose an expert in training since the
   * last update, padding excluded and dropped ones included; what {@link recompute} runs again counts once, and a forward
   * of a layer that throws does not count. Call it after a step of the optimizer; it waits for the device. Nothing
   * happens without a load. In a model of {@link dataParallel}, and in a layer with a `processGroup`, the load is that of all
   * ranks, which all call it. Errors: OPTION; those of `allReduce`.
   *
   * @example
   * ```ts
   * const gate = new TopNGating({ dim: 32, numGates: 4, expertBias: true })
   * gate.forward(randn([2, 16, 32]))
   * gate.updateExpertBias(0.001)
   * console.log(gate.expertBias?.shape) // → [ 4 ]
   * ```
   */
  updateExpertBias(rate: number): void {
    const op = 'updateExpertBias'
    checkNumber(op, 'rate', rate)
    const [bias, load] = [this.expertBias, this.#load]
    if (!bias || !load) failWithoutBias(op)
    scope(() => {
      const group = this.loadGroup
      const loads = group && group.size > 1 ? noGrad(() => allReduce(load, group)) : load
      const counts = Array.from(loads.dataSync(), Number)
      const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length
      const step = counts.map((count) => rate * Math.sign(mean - count))
      const { dtype, device } = bias
      const [change, none] = [tensor(step, null, { dtype, device }), zeros(load.shape, { device })]
      native.addInPlace(handleOf(bias), handleOf(change))
      overwrite(load, none) // in place: a captured step adds to it
    })
  }

  #countLoad(routing: RouteResult): void {
    const load = this.#load
    if (!load || !this.training || isComputingAgain()) return
    uncounted?.push({ load, counts: keep(noGrad(() => scope(() => loadOf(routing, this.numGates)))) })
  }

  protected override transientBuffers(): readonly Tensor[] {
    return this.#load ? [this.#load] : []
  }

  /** Thresholds, the bias of the choice if there is one, and the weight of the router. */
  override *stateEntries(): Iterable<StateEntry> {
    yield { name: 'threshold_train', tensor: this.thresholdTrain }
    yield { name: 'threshold_eval', tensor: this.thresholdEval }
    if (this.expertBias) yield { name: 'expert_bias', tensor: this.expertBias }
    yield { name: 'to_gates.weight', tensor: this.toGates.weight }
    if (this.toGates.bias) yield { name: 'to_gates.bias', tensor: this.toGates.bias }
  }

  protected override stateName(property: string): string {
    return property === 'toGates' ? 'to_gates' : property
  }
}
