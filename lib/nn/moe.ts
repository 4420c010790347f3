import { refuseToWait } from '../autograd/context.js'
import { allOrNone, callScope } from '../autograd/scope.js'
import { activationOptions } from '../ops/activation.js'
import { add, mul } from '../ops/binary.js'
import { expertFfn } from '../ops/expert-ffn.js'
import { sum } from '../ops/reduce.js'
import { reshape } from '../ops/reshape.js'
import { lossOptions } from '../ops/route-options.js'
import { eachChoice, type RouteResult, type Routing } from '../ops/routing.js'
import { copyArray, fail, showShape } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import type { ComputeDType, DType } from '../runtime/dtype.js'
import { MoeError } from '../runtime/errors.js'
import { pick, type ValuesOf } from '../runtime/options.js'
import { ones } from '../tensor/create.js'
import { allFinite } from '../tensor/norm.js'
import { checkTensor, handleOf, isTensor, type Tensor } from '../tensor/tensor.js'
import { ExpertChoiceGating, passedToExpertChoice } from './expert-choice-gating.js'
import { ExpertGroups } from './expert-groups.js'
import { Experts, expertHiddenSize, expertOptions } from './experts.js'
import { countingLoads, type GatingForwardOptions, passedToGating, readRandom, TopNGating } from './gating.js'
import { gemmOptions, layerOptions } from './linear.js'
import { Module } from './module.js'
import {
  choiceOf,
  type MoEForwardOptions,
  type MoEOptions,
  readForwardOptions,
  readOptions,
  secondLevel,
} from './moe-options.js'
import { MoEResult } from './moe-result.js'
import { SharedExperts } from './shared-experts.js'
import { UserExperts } from './user-experts.js'
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
  readonly #straightThrough: boolean
  readonly #throwNonFinite: boolean
  readonly #routedScalingFactor: number
  readonly #groupSize: number | undefined
  readonly #scaleInput: boolean
  readonly #dropout: number
  readonly #losses: ValuesOf<[typeof lossOptions]>

  /**
   * Checks options as the constructor does, custom `experts` excepted, without making a layer. Errors: OPTION, DTYPE,
   * DEVICE, UNSUPPORTED.
   */
  static checkOptions(options: MoEOptions): void {
    readOptions('MoE', options)
  }

  /**
   * Errors: OPTION (an unknown option is one, and names the nearest), DTYPE, DEVICE, BACKEND_UNAVAILABLE, UNSUPPORTED
   * for expert parallelism, OUT_OF_MEMORY.
   */
  constructor(options: MoEOptions) {
    super()
    const op = 'MoE'
    const o = readOptions(op, options)
    deviceIndex(op, o.device)
    const [numExperts, inGroup] = [o.numExperts].flat()
    const hidden = o.experts ? 0 : (o.expertHiddenDim ?? expertHiddenSize(o.dim, o.expertHiddenMult, op))
    this.dim = o.dim
    this.numExperts = numExperts
    this.outputDim = o.outputDim ?? o.dim
    this.computeDtype = o.computeDtype
    this.#straightThrough = o.straightThroughDispatchTensor
    this.#throwNonFinite = o.onNonFinite === 'throw'
    this.#routedScalingFactor = o.routedScalingFactor
    this.#groupSize = o.groupSize
    this.#scaleInput = o.scaleInput
    this.#losses = pick(o, lossOptions)
    this.#dropout = o.expertDropout
    const experts = pick(o, layerOptions, gemmOptions, activationOptions, expertOptions)
    const own = o.experts ? new UserExperts(op, o.experts, numExperts) : null // refuses bad ones before the gate is made
    ;[this.gate, this.experts, this.sharedExperts] = allOrNone(() => [
      o.router !== 'expertChoice'
        ? new TopNGating({ ...pick(o, ...passedToGating), ...choiceOf(o), numGates: numExperts }, op)
        : new ExpertChoiceGating({ ...pick(o, ...passedToExpertChoice), numGates: numExperts }, op),
      inGroup !== undefined
        ? new ExpertGroups(Array.from({ length: numExperts }, () => new MoE(secondLevel(o, inGroup))))
        : (own ?? new Experts(numExperts, o.dim, hidden, experts)),
      o.sharedExperts
        ? new SharedExperts(o.dim, o.sharedHiddenDim ?? o.sharedExperts * hidden, o.sharedExpertGate, experts)
        : null,
    ])
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
    if (groupRandom !== undefined && !(this.experts instanceof ExpertGroups))
      fail('OPTION', op, 'groupRandom is for two levels, numExperts [E1, E2]')
    checkTensor(op, 'x', x)
    if (x.shape.length !== 3 || x.shape[2] !== this.dim) {
      fail('SHAPE', op, `x must be [batch, tokens, ${this.dim}], got ${showShape(x.shape)}`)
    }
    const { dtype, device } = this.gate.toGates.weight
    checkTensor(op, 'x', x, { shape: x.shape, dtype, device })
    this.#checkFinite(op, 'x', x)
    return callScope(() =>
      countingLoads(() => {
        const [tokens, grouped, inputs] = this.#inGroups(op, x, gating, this.#checkInputs(op, x, expertInputs))
        const choice = this.gate.forward(tokens, grouped)
        const { outputs: routed, ...routing } = this.#routed(tokens, choice, inputs, groupRandom)
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
    if (!(this.gate instanceof TopNGating)) fail('OPTION', 'updateExpertBias', 'the router needs expertBias: true')
    this.gate.updateExpertBias(rate)
    if (this.experts instanceof ExpertGroups)
      for (const layer of this.experts.experts) (layer as MoE).updateExpertBias(rate)
  }

  /** The outputs of the routed experts, and the routing with the weights and losses that it then has. */
  #routed<D extends DType>(
    x: Tensor<D>,
    choice: RouteResult<D>,
    inputs: readonly Tensor[],
    groupRandom: unknown,
  ): RouteResult<D> & { outputs: Tensor<D> } {
    const straightThrough = this.#straightThrough
    const factor = this.#routedScalingFactor
    const routing = factor === 1 ? choice : { ...choice, weight: mul(choice.weight, factor) }
    if (this.experts instanceof ExpertGroups) {
      const { balanceLossCoef, routerZLossCoef } = this.#losses
      const random = groupRandom === undefined ? [] : this.#checkGroupRandom(groupRandom)
      const result = this.experts.apply(x, choice, { straightThrough, groupSize: x.shape[1], factor, random })
      const totalAuxLoss = add(mul(result.balanceLoss, balanceLossCoef), mul(result.routerZLoss, routerZLossCoef))
      return { ...routing, ...result, totalAuxLoss }
    }
    const outputs = this.#scaleInput
      ? this.#applyScaled(x, routing, inputs)
      : this.#apply(x, routing, inputs, straightThrough)
    return { ...routing, outputs }
  }

  /** x and what belongs to its tokens, as [B · N / G, G, …]. */
  #inGroups<D extends DType>(
    op: string,
    x: Tensor<D>,
    o: GatingForwardOptions,
    inputs: readonly Tensor[],
  ): [Tensor<D>, GatingForwardOptions, readonly Tensor[]] {
    const G = this.#groupSize
    const [B, N, D] = x.shape
    if (G === undefined || G === N) return [x, o, inputs]
    if ((B * N) % G !== 0) fail('SHAPE', op, `groupSize = ${G} must divide the ${B} · ${N} tokens of x`)
    const groups = [(B * N) / G, G]
    const cut = (name: string, tensor: Tensor | undefined, before: readonly number[], after: readonly number[]) => {
      if (!isTensor(tensor)) return tensor
      checkTensor(op, name, tensor, { dtype: tensor.dtype, device: tensor.device, shape: [...before, B, N, ...after] })
      return reshape(tensor, [...before, ...groups, ...after])
    }
    const given = readRandom(op, o.random)
    const { uniforms } = given
    const seen = this.gate.toGates.weight.shape[1]
    const random = o.random && {
      uniforms: cut('uniforms', uniforms, isTensor(uniforms) ? uniforms.shape.slice(0, 1) : [], []),
      gumbelUniforms: cut('gumbelUniforms', given.gumbelUniforms, [], [this.numExperts]),
      secondPlaceUniforms: cut('secondPlaceUniforms', given.secondPlaceUniforms, [], []),
      jitterUniforms: cut('jitterUniforms', given.jitterUniforms, [], [seen]),
      dropoutUniforms: cut('dropoutUniforms', given.dropoutUniforms, [], [seen]),
    }
    const ofTokens = {
      mask: cut('mask', o.mask, [], []),
      importance: cut('importance', o.importance, [], []),
      routerInput: cut('routerInput', o.routerInput, [], [seen]),
    }
    const more = inputs.map((input) => reshape(input, [...groups, input.shape[2]]))
    return [reshape(x, [...groups, D]), { ...o, random, ...ofTokens }, more]
  }

  #apply<D extends DType>(
    x: Tensor<D>,
    routing: Routing<D>,
    inputs: readonly Tensor[],
    straightThrough: boolean,
  ): Tensor<D> {
    const experts = this.experts as Experts | UserExperts
    if (experts instanceof UserExperts) return experts.apply(x, inputs, routing, straightThrough)
    const dropout = this.training ? this.#dropout : 0
    return expertFfn(x, routing, experts, {
      dropout,
      straightThrough,
      ...pick(experts, gemmOptions, activationOptions),
    })
  }

  /** Each assignment as a token of its own: its input is weight · x, and the K outputs are added up. */
  #applyScaled<D extends DType>(x: Tensor<D>, routing: RouteResult<D>, inputs: readonly Tensor[]): Tensor<D> {
    const [B, N, K] = routing.expertIndex.shape
    const each = (input: Tensor, weight: Tensor) =>
      reshape(mul(reshape(input, [B, N, 1, input.shape[2]]), reshape(weight, [B, N, K, 1])), [B, N * K, input.shape[2]])
    const alone = eachChoice(routing, routing.kept.to(x.dtype))
    const more = inputs.map((input) => each(input, ones([B, N, K], { dtype: x.dtype, device: x.device })))
    const y = this.#apply(each(x, routing.weight) as Tensor<D>, alone, more, false)
    return sum(reshape(y, [B, N, K, this.outputDim]), 2)
  }

  #checkGroupRandom(groupRandom: unknown): object[] {
    const op = 'MoE.forward'
    const list = copyArray(op, 'groupRandom', groupRandom, 2 ** 20)
    if (list.length !== this.numExperts)
      fail('OPTION', op, `groupRandom must hold one for each of ${this.numExperts} groups, got ${list.length}`)
    return list as object[]
  }

  #checkInputs(op: string, x: Tensor, inputs: unknown): readonly Tensor[] {
    const list = copyArray(op, 'expertInputs', inputs, 2 ** 20)
    if (list.length > 0 && !(this.experts instanceof UserExperts))
      fail('OPTION', op, 'expertInputs is for experts of your own')
    const { dtype, device } = x
    return list.map((input, i) => {
      const name = `expertInputs[${i}]`
      const last = checkTensor(op, name, input).shape[2] ?? 0
      return checkTensor(op, name, input, { shape: [...x.shape.slice(0, 2), last], dtype, device })
    })
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
