import { checkBoolean, checkInteger, checkNumber, checkOneOf, checkOptions, copyArray, fail } from '../check.js'
import { tensor } from '../create.js'
import type { Device } from '../device.js'
import type { DType } from '../dtype.js'
import { show } from '../errors.js'
import { expertCapacity, type RouteResult, type RoutingRandom, route } from '../ops/route.js'
import { allOrNone, keep } from '../scope.js'
import { checkTensor, type Tensor } from '../tensor.js'
import { type LayerOptions, Linear, layerOptions } from './linear.js'
import { Module, type StateEntry } from './module.js'

/** Options of {@link TopNGating}. */
export interface TopNGatingOptions extends LayerOptions {
  /** D */
  dim: number
  /** E */
  numGates: number
  /** K. Default 2. */
  topN?: number
  /**
   * A later choice of gate g is routed with probability min(1, g / threshold): a number, or one for each choice after
   * the first. Default 0.2.
   */
  thresholdTrain?: number | readonly number[]
  /** The same in evaluation. Default 0.2. */
  thresholdEval?: number | readonly number[]
  /** See {@link ops.expertCapacity}. Default 1.25. */
  capacityFactorTrain?: number
  /** The same in evaluation. Default 2. */
  capacityFactorEval?: number
  /** Factor of the balance loss in `totalAuxLoss`. Default 1e-2. */
  balanceLossCoef?: number
  /** Factor of the router z-loss in `totalAuxLoss`. Default 1e-3. */
  routerZLossCoef?: number
  /** Gates by coordinate descent, so that every expert's score gets a gradient (CoLT5, arXiv 2303.09752). Default false. */
  differentiableTopk?: boolean
  /** Adds Gumbel noise to the logits, in evaluation too. Default false. */
  noiseGates?: boolean
  /** Factor of the noise. Default 1. */
  noiseMult?: number
  /** What the balance loss counts, see {@link ops.RouteOptions.balanceDensity}. Default 'kept'. */
  balanceDensity?: 'kept' | 'assigned'
  /** Floor of the sum of the chosen probabilities. Default 1e-9. */
  eps?: number
}

/** Options that a layer passes on to its gating under the same names. */
export const gatingNames = [
  'dim',
  'thresholdTrain',
  'thresholdEval',
  'capacityFactorTrain',
  'capacityFactorEval',
  'balanceLossCoef',
  'routerZLossCoef',
  'differentiableTopk',
  'noiseGates',
  'noiseMult',
  'balanceDensity',
  'eps',
  'dtype',
  'device',
] as const

/** Options of one forward of a router. */
export interface GatingForwardOptions {
  /** Numbers to use instead of drawn ones. */
  random?: RoutingRandom
  /** [B, N], 0 for padding: see {@link ops.RouteOptions.mask}. */
  mask?: Tensor
  /** Default: that of the layer. */
  noiseGates?: boolean
  /** Default: that of the layer. */
  noiseMult?: number
}

/** K that the native code takes. */
const maxChoices = 2 ** 20

/** f32 [K]: eps, then the thresholds. */
function thresholdBuffer(op: string, name: string, value: unknown, K: number, eps: number, device: Device): Tensor {
  const list = Array.isArray(value) ? copyArray(op, name, value, 2 ** 20) : Array(K - 1).fill(value)
  if (list.length !== K - 1)
    fail(
      'OPTION',
      op,
      `${name} must be a number or ${K - 1} numbers (one for each choice after the first), got ${show(value)}`,
    )
  const values = list.map((entry, i) => checkNumber(op, Array.isArray(value) ? `${name}[${i}]` : name, entry))
  return keep(tensor(Float32Array.from([eps, ...values]), [K], { device }))
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
  /** D → E, without bias; weight uniform in ±1/√D at the start. */
  readonly toGates: Linear
  /** f32 [K], the first entry not used. */
  readonly thresholdTrain: Tensor
  /** f32 [K], for evaluation. */
  readonly thresholdEval: Tensor
  readonly #options: {
    capacityFactorTrain: number
    capacityFactorEval: number
    balanceLossCoef: number
    routerZLossCoef: number
    differentiableTopk: boolean
    noiseGates: boolean
    noiseMult: number
    balanceDensity: 'kept' | 'assigned'
    eps: number
  }

  /** Errors: OPTION, DTYPE, DEVICE; they name `op`. */
  constructor(options: TopNGatingOptions, op = 'TopNGating') {
    super()
    const o = checkOptions<TopNGatingOptions>(op, options, ['numGates', 'topN', ...gatingNames])
    const layer = layerOptions(op, o)
    const dim = checkInteger(op, 'dim', o.dim, 1)
    const [gates, choices] = op === 'MoE' ? ['numExperts', 'gatingTopN'] : ['numGates', 'topN']
    this.numGates = checkInteger(op, gates, o.numGates, 1)
    this.topN = checkInteger(op, choices, o.topN ?? 2, 1, this.numGates > maxChoices ? maxChoices : undefined)
    if (this.topN > this.numGates) {
      const got = o.topN === undefined ? `${this.topN} (the default)` : this.topN
      fail('OPTION', op, `${choices} must be at most ${gates} = ${this.numGates}, got ${got}`)
    }
    const eps = checkNumber(op, 'eps', o.eps ?? 1e-9, 0)
    this.#options = {
      capacityFactorTrain: checkNumber(op, 'capacityFactorTrain', o.capacityFactorTrain ?? 1.25, 0),
      capacityFactorEval: checkNumber(op, 'capacityFactorEval', o.capacityFactorEval ?? 2, 0),
      balanceLossCoef: checkNumber(op, 'balanceLossCoef', o.balanceLossCoef ?? 1e-2),
      routerZLossCoef: checkNumber(op, 'routerZLossCoef', o.routerZLossCoef ?? 1e-3),
      differentiableTopk: checkBoolean(op, 'differentiableTopk', o.differentiableTopk ?? false),
      noiseGates: checkBoolean(op, 'noiseGates', o.noiseGates ?? false),
      noiseMult: checkNumber(op, 'noiseMult', o.noiseMult ?? 1),
      balanceDensity: checkOneOf(op, 'balanceDensity', o.balanceDensity ?? 'kept', ['kept', 'assigned']),
      eps,
    }
    ;[this.toGates, this.thresholdTrain, this.thresholdEval] = allOrNone(() => [
      new Linear(dim, this.numGates, { ...layer, bias: false }),
      thresholdBuffer(op, 'thresholdTrain', o.thresholdTrain ?? 0.2, this.topN, eps, layer.device),
      thresholdBuffer(op, 'thresholdEval', o.thresholdEval ?? 0.2, this.topN, eps, layer.device),
    ])
  }

  /** x [B, N, D] → where its tokens go, and the losses (0 in evaluation). Errors: SHAPE, DTYPE, DEVICE, OPTION. */
  forward<D extends DType>(x: Tensor<D>, options?: GatingForwardOptions): RouteResult<D> {
    const op = 'TopNGating.forward'
    const o = checkOptions<GatingForwardOptions>(op, options, ['random', 'mask', 'noiseGates', 'noiseMult'])
    const random = checkOptions<RoutingRandom>(op, o.random, ['uniforms', 'gumbelUniforms'])
    checkTensor(op, 'x', x)
    const { capacityFactorTrain, capacityFactorEval, ...rest } = this.#options
    const factor = this.training ? capacityFactorTrain : capacityFactorEval
    return route(x, this.toGates.weight, {
      ...rest,
      ...random,
      topN: this.topN,
      capacity: expertCapacity(x.shape[1] ?? 0, this.numGates, factor),
      threshold: this.training ? this.thresholdTrain : this.thresholdEval,
      training: this.training,
      noiseGates: o.noiseGates ?? rest.noiseGates,
      noiseMult: o.noiseMult ?? rest.noiseMult,
      mask: o.mask,
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
