import { refuseToWait } from '../autograd/context.js'
import { callScope } from '../autograd/scope.js'
import { add } from '../ops/binary.js'
import { reshape } from '../ops/reshape.js'
import { fail, showShape } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import type { ComputeDType, DType } from '../runtime/dtype.js'
import { MoeError } from '../runtime/errors.js'
import { allFinite } from '../tensor/norm.js'
import { checkTensor, handleOf, type Tensor } from '../tensor/tensor.js'
import type { ExpertChoiceGating } from './expert-choice-gating.js'
import type { ExpertGroups } from './expert-groups.js'
import type { Experts } from './experts.js'
import { countingLoads, TopNGating } from './gating.js'
import { Module } from './module.js'
import { type MoEForwardOptions, type MoEOptions, readForwardOptions, readOptions } from './moe-options.js'
import { makeParts } from './moe-parts.js'
import { MoEResult } from './moe-result.js'
import type { ExpertsCall, RoutedExperts } from './routed-experts.js'
import type { SharedExperts } from './shared-experts.js'
import { inGroups } from './token-groups.js'
import type { UserExperts } from './user-experts.js'
import { forwardWithGrad, type GradHandle } from './with-grad.js'

/**
 * Sparse mixture of experts (ST-MoE, arXiv 2202.08906) with the semantics and state names of st-moe-pytorch 0.1.8:
 * x [B, N, D] → outputs [B, N, O] and auxiliary losses, O = D by default. {@link ops.route} chooses K of E experts for
 * each token and {@link ops.expertFfn} applies them; a fully dropped token outputs zeros, or what shared experts give.
 *
 * @example
 * ```ts
 * const moe = new MoE({ dim: 32, numExperts: 4, gatingTopN: 2 })
 * const x = randn([2, 16, 32])
 * const { outputs, totalAuxLoss } = moe.forward(x)
 * outputs.sub(x).square().mean().add(totalAuxLoss).backward()
 * console.log(outputs.shape, moe.gate.toGates.weight.grad?.shape) // → [ 2, 16, 32 ] [ 4, 32 ]
 * ```
 */
export class MoE extends Module {
  /** D */
  readonly dim: number
  /** E, or E1 of a pair. */
  readonly numExperts: number
  /** O, D unless the option says otherwise. */
  readonly outputDim: number
  /** The router. */
  readonly gate: TopNGating | ExpertChoiceGating
  /** Built in, those of the option `experts`, or groups of built-in ones if `numExperts` is a pair. */
  readonly experts: Experts | UserExperts | ExpertGroups
  /** Those of the option `sharedExperts`, or null. */
  readonly sharedExperts: SharedExperts | null
  /** What the operands of the experts' GEMMs are rounded to. */
  readonly computeDtype: ComputeDType
  readonly #throwNonFinite: boolean
  readonly #groupSize: number | undefined
  readonly #dropout: number
  readonly #call: Pick<ExpertsCall, 'straightThrough' | 'routedScalingFactor' | 'scaleInput' | 'dropless'>

  /**
   * Checks options as the constructor does, custom `experts` excepted, without making a layer. Errors: OPTION, DTYPE,
   * DEVICE, UNSUPPORTED.
   */
  static checkOptions(options: MoEOptions): void {
    readOptions('MoE', options)
  }

  /**
   * Errors: OPTION (an unknown option is one, and names the nearest), DTYPE, DEVICE, BACKEND_UNAVAILABLE, OUT_OF_MEMORY;
   * DISPOSED for a destroyed `processGroup`.
   */
  constructor(options: MoEOptions) {
    super()
    const op = 'MoE'
    const o = readOptions(op, options)
    deviceIndex(op, o.device)
    this.dim = o.dim
    this.numExperts = [o.numExperts].flat()[0]
    this.outputDim = o.outputDim ?? o.dim
    this.computeDtype = o.computeDtype
    this.#throwNonFinite = o.onNonFinite === 'throw'
    this.#groupSize = o.groupSize
    this.#dropout = o.expertDropout
    this.#call = {
      straightThrough: o.straightThroughDispatchTensor,
      routedScalingFactor: o.routedScalingFactor,
      scaleInput: o.scaleInput,
      dropless: o.dropless,
    }
    const parts = makeParts(op, o, (options) => new MoE(options))
    this.gate = parts.gate
    if (this.gate instanceof TopNGating) this.gate.loadGroup = o.processGroup ?? null
    this.experts = parts.experts
    this.sharedExperts = parts.sharedExperts
  }

  /**
   * x [B, N, D] of the dtype and device of the layer → outputs [B, N, O], three losses of shape [] and the routing.
   * Second and later experts are used at random, in evaluation too unless `thresholdEval` is 0; the numbers are those of
   * {@link manualSeed}, or `random`. If capacity is short, a token's output depends on later tokens: docs/concepts.md.
   *
   * Errors: SHAPE, DTYPE, DEVICE, DISPOSED, OPTION; NON_FINITE with `onNonFinite: 'throw'`.
   *
   * @example
   * ```ts
   * const moe = new MoE({ dim: 32, numExperts: 4 }).eval()
   * const mask = tensor([Array(12).fill(1).concat(Array(4).fill(0))]) // the last four tokens are padding
   * const { outputs, stats } = moe.forward(randn([1, 16, 32]), { mask, stats: true })
   * console.log(outputs.slice(1, 12, 16).abs().sum().item(), stats?.keptPerExpert.length) // → 0 4
   * ```
   */
  forward<D extends DType>(x: Tensor<D>, options?: MoEForwardOptions): MoEResult<D> {
    const op = 'MoE.forward'
    const { stats, expertInputs, groupRandom, ...gating } = readForwardOptions(op, options)
    const experts: RoutedExperts = this.experts
    if (groupRandom !== undefined) experts.expectGroupRandom(op)
    checkTensor(op, 'x', x)
    if (x.shape.length !== 3 || x.shape[2] !== this.dim) {
      fail('SHAPE', op, `x must be [batch, tokens, ${this.dim}], got ${showShape(x.shape)}`)
    }
    const { dtype, device } = this.gate.toGates.weight
    checkTensor(op, 'x', x, { shape: x.shape, dtype, device })
    this.#checkFinite(op, 'x', x)
    return callScope(() =>
      countingLoads(() => {
        const given = { x, gating, inputs: experts.checkInputs(op, x, expertInputs) }
        const sizes = { E: this.numExperts, D: this.gate.toGates.weight.shape[1] }
        const { x: tokens, gating: grouped, inputs } = inGroups(op, given, this.#groupSize, sizes)
        const choice = this.gate.forward(tokens, grouped)
        const dropout = this.training ? this.#dropout : 0
        const call = { inputs, groupRandom, dropout, ...this.#call }
        const { outputs: routed, ...routing } = experts.run(tokens, choice, call)
        const each = this.sharedExperts ? add(routed, this.sharedExperts.forward(tokens, routing.mask)) : routed
        const outputs = tokens === x ? each : reshape(each, [x.shape[0], x.shape[1], this.outputDim])
        this.#checkFinite(op, 'the output', outputs)
        return new MoEResult(outputs, routing, stats)
      }),
    )
  }

  /**
   * For custom training loops: takes and returns plain arrays of the layer's dtype. Parameter gradients accumulate in
   * `parameter.grad`. The handle holds memory until `backward` or `dispose`. Errors: DTYPE, SHAPE, OPTION.
   *
   * @example
   * ```ts
   * const moe = new MoE({ dim: 32, numExperts: 4 })
   * using step = moe.forwardWithGrad(new Float32Array(2 * 16 * 32).fill(0.1), [2, 16, 32])
   * const { dInput } = step.backward(step.outputs, 1) // the gradient of |outputs|² / 2 + totalAuxLoss
   * console.log(dInput.length) // → 1024
   * ```
   */
  forwardWithGrad(
    input: Float32Array | Float64Array,
    shape: readonly number[],
    options?: MoEForwardOptions,
  ): GradHandle {
    return forwardWithGrad('MoE.forwardWithGrad', this, this.gate.toGates.weight, input, shape, options)
  }

  /**
   * {@link TopNGating.updateExpertBias} of the router. Call it after a step of the optimizer. Errors: OPTION without
   * `expertBias`.
   *
   * @example
   * ```ts
   * const moe = new MoE({ dim: 32, numExperts: 4, scoreFunction: 'sigmoid', expertBias: true })
   * moe.forward(randn([2, 16, 32])).outputs.square().mean().backward()
   * moe.updateExpertBias(0.001)
   * console.log(moe.stateDict()['gate.expert_bias'].shape) // → [ 4 ]
   * ```
   */
  updateExpertBias(rate: number): void {
    this.gate.updateExpertBias(rate)
    this.experts.updateExpertBias(rate)
  }

  protected override stateName(property: string): string {
    return property === 'sharedExperts' ? 'shared_experts' : property
  }

  #checkFinite(op: string, name: string, x: Tensor): void {
    if (!this.#throwNonFinite) return
    refuseToWait(op, "onNonFinite: 'throw' waits for the device")
    if (!allFinite([handleOf(x)]))
      throw new MoeError('NON_FINITE', op, `${name} must be finite, got a NaN or an infinity`)
  }
}
