import { copyArray, fail, sameShape, showShape } from '../check.js'
import { deviceIndex } from '../device.js'
import type { ComputeDType, DType } from '../dtype.js'
import { MoeError, show } from '../errors.js'
import { allFinite } from '../norm.js'
import { type ActivationOptions, activationOptions } from '../ops/activation.js'
import { add, mul } from '../ops/binary.js'
import { combine } from '../ops/combine.js'
import { dispatch } from '../ops/dispatch.js'
import { expertFfn } from '../ops/expert-ffn.js'
import { sum } from '../ops/reduce.js'
import { reshape } from '../ops/reshape.js'
import { choiceOptions, type lossOptions, routerOptions, type topkOptions } from '../ops/route-options.js'
import type { RouteResult } from '../ops/routing.js'
import { concat, slice } from '../ops/strided.js'
import {
  boolean,
  integer,
  number,
  type OptionsOf,
  oneOf,
  onlyIf,
  onlyWhere,
  optional,
  pick,
  reader,
  unchecked,
} from '../options.js'
import { allOrNone, callScope, scope } from '../scope.js'
import { checkTensor, handleOf, isTensor, type Tensor } from '../tensor.js'
import { ExpertChoiceGating, passedToExpertChoice } from './expert-choice-gating.js'
import { Experts, expertOptions, hiddenSize } from './experts.js'
import {
  type GatingForwardOptions,
  gatingForwardOptions,
  type gatingOptions,
  maxChoices,
  passedToGating,
  readRandom,
  TopNGating,
  type thresholdOptions,
  type tokenChoiceOptions,
} from './gating.js'
import { computeDType, gemmOptions, type LayerOptions, layerOptions } from './linear.js'
import { checkModule, Module } from './module.js'
import { MoEResult } from './moe-result.js'
import type { routerInputOptions } from './router-input.js'
import { SharedExperts } from './shared-experts.js'
import { type SharedExpertsOptions, sharedOptions } from './shared-options.js'
import { forwardWithGrad, type GradHandle } from './with-grad.js'

const moeOptions = {
  /** E. Default 16. */
  numExperts: integer({ min: 1, default: ({ experts }) => (Array.isArray(experts) ? experts.length : 16) }),
  ...onlyIf('router', ['topk'], {
    /**
     * K, experts per token. With 1 a gate is always 1 and the router learns from the losses alone, unless
     * `gateNormalization` is 'none', as with `router: 'switch'`. Default 2.
     */
    gatingTopN: integer({ min: 1, max: maxChoices, atMost: 'numExperts', default: 2 }),
  }),
  /**
   * G: the B · N tokens in order, cut into groups of G, which must divide B · N. Capacity, slots and the load-balancing loss
   * are per group, and `routing` has the shapes of x [B · N / G, G, D]. Default: a group is a sequence.
   */
  groupSize: optional(integer({ min: 1 })),
  /** Multiplies all combine weights (DeepSeek-V3). Default 1. */
  routedScalingFactor: number({ default: 1 }),
  /** The combine weight multiplies the input of an expert instead of its output (Llama 4). Default false. */
  scaleInput: boolean({ default: false }),
  /** The dispatch weight is 1 forward but passes its gradient to the router. Default true. */
  straightThroughDispatchTensor: boolean({ default: true }),
  /** E modules instead of the built-in experts, each called with [B, C, D] (empty slots are zero rows). */
  experts: unchecked<readonly Module[]>(),
  /** 'throw': a NaN or infinity in the input or output is a NON_FINITE error. Default 'propagate': only its rows become non-finite. */
  onNonFinite: oneOf(['propagate', 'throw'], { default: 'propagate' }),
  /** Variable sequence lengths between processes; needs `processGroup`. */
  allowVarSeqLen: unchecked<boolean>(),
  /** Expert parallelism. Not available in this version. */
  processGroup: unchecked<unknown>(),
}

const hiddenOptions = {
  /** The hidden size of the built-in experts is trunc(dim · mult · 2 / 3). Default 4. */
  expertHiddenMult: number({ min: 0, default: 4 }),
  /** H, the hidden size itself. Default: that of `expertHiddenMult`. */
  expertHiddenDim: optional(integer({ min: 1 })),
  /**
   * 'bf16' or 'f16' rounds the operands of the built-in experts' GEMMs; their sums, the router, the losses and all
   * parameters stay f32. Default: dtype.
   */
  computeDtype: computeDType,
}

/** Of the built-in experts. */
const builtInOptions = { ...hiddenOptions, ...activationOptions, ...expertOptions, ...sharedOptions }

/** Options of {@link MoE}; `dim` is required. */
export interface MoEOptions
  extends OptionsOf<typeof routerOptions>,
    OptionsOf<typeof moeOptions>,
    OptionsOf<typeof choiceOptions>,
    OptionsOf<typeof tokenChoiceOptions>,
    OptionsOf<typeof gatingOptions>,
    OptionsOf<typeof routerInputOptions>,
    OptionsOf<typeof thresholdOptions>,
    OptionsOf<typeof lossOptions>,
    OptionsOf<typeof topkOptions>,
    OptionsOf<typeof hiddenOptions>,
    OptionsOf<typeof expertOptions>,
    SharedExpertsOptions,
    ActivationOptions,
    LayerOptions {}

export const readOptions = reader(
  routerOptions,
  choiceOptions,
  ...passedToGating,
  moeOptions,
  onlyWhere(({ experts }) => (experts === undefined ? null : 'is for the built-in experts'), builtInOptions),
)

const forwardOptions = {
  /** Adds counts of tokens per expert to the result. Default false. */
  stats: boolean({ default: false }),
}

/** Options of {@link MoE.forward}. */
export interface MoEForwardOptions extends GatingForwardOptions, OptionsOf<typeof forwardOptions> {}

const readForwardOptions = reader(gatingForwardOptions, forwardOptions)

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
  /** E */
  readonly numExperts: number
  /** O, D unless the option says otherwise. */
  readonly outputDim: number
  /** The router. */
  readonly gate: TopNGating | ExpertChoiceGating
  /** Built in, or those of the option `experts`. */
  readonly experts: Experts | UserExperts
  /** Those of the option `sharedExperts`, or null. */
  readonly sharedExperts: SharedExperts | null
  /** What the operands of the experts' GEMMs are rounded to. */
  readonly computeDtype: ComputeDType
  readonly #straightThrough: boolean
  readonly #throwNonFinite: boolean
  readonly #routedScalingFactor: number
  readonly #groupSize: number | undefined
  readonly #scaleInput: boolean

  /**
   * Errors: OPTION (an unknown option is one, and names the nearest), DTYPE, DEVICE, BACKEND_UNAVAILABLE, UNSUPPORTED
   * for expert parallelism, OUT_OF_MEMORY.
   */
  constructor(options: MoEOptions) {
    super()
    const op = 'MoE'
    const o = readOptions(op, options)
    if (o.processGroup || o.allowVarSeqLen)
      fail('UNSUPPORTED', op, 'processGroup and allowVarSeqLen (expert parallelism) are not available in this version')
    deviceIndex(op, o.device)
    const modules = o.experts === undefined ? null : checkExperts(op, o.experts, o.numExperts)
    const hidden = modules ? 0 : (o.expertHiddenDim ?? hiddenSize(op, o.dim, o.expertHiddenMult))
    this.dim = o.dim
    this.numExperts = o.numExperts
    this.outputDim = o.outputDim ?? o.dim
    this.computeDtype = o.computeDtype
    this.#straightThrough = o.straightThroughDispatchTensor
    this.#throwNonFinite = o.onNonFinite === 'throw'
    this.#routedScalingFactor = o.routedScalingFactor
    this.#groupSize = o.groupSize
    this.#scaleInput = o.scaleInput
    const experts = pick(o, layerOptions, gemmOptions, activationOptions, expertOptions)
    ;[this.gate, this.experts, this.sharedExperts] = allOrNone(() => [
      o.router !== 'expertChoice'
        ? new TopNGating(
            { ...pick(o, ...passedToGating), numGates: o.numExperts, topN: o.router === 'topk' ? o.gatingTopN : 1 },
            op,
          )
        : new ExpertChoiceGating({ ...pick(o, ...passedToExpertChoice), numGates: o.numExperts }, op),
      modules ? new UserExperts(modules) : new Experts(o.numExperts, o.dim, hidden, experts),
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
    const { stats, ...gating } = readForwardOptions(op, options)
    checkTensor(op, 'x', x)
    if (x.shape.length !== 3 || x.shape[2] !== this.dim) {
      fail('SHAPE', op, `x must be [batch, tokens, ${this.dim}], got ${showShape(x.shape)}`)
    }
    const { dtype, device } = this.gate.toGates.weight
    checkTensor(op, 'x', x, { shape: x.shape, dtype, device })
    this.#checkFinite(op, 'x', x)
    return callScope(() => {
      const [tokens, grouped] = this.#inGroups(op, x, gating)
      const routing = this.#scaled(this.gate.forward(tokens, grouped))
      const routed = this.#scaleInput
        ? this.#applyScaled(tokens, routing)
        : this.#apply(tokens, routing, this.#straightThrough)
      const each = this.sharedExperts ? add(routed, this.sharedExperts.forward(tokens, routing.mask)) : routed
      const outputs = tokens === x ? each : reshape(each, [x.shape[0], x.shape[1], this.outputDim])
      this.#checkFinite(op, 'the output', outputs)
      return new MoEResult(outputs, routing, stats)
    })
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
  }

  #scaled<D extends DType>(routing: RouteResult<D>): RouteResult<D> {
    const factor = this.#routedScalingFactor
    return factor === 1 ? routing : { ...routing, weight: mul(routing.weight, factor) }
  }

  /** x and what belongs to its tokens, as [B · N / G, G, …]. */
  #inGroups<D extends DType>(op: string, x: Tensor<D>, o: GatingForwardOptions): [Tensor<D>, GatingForwardOptions] {
    const G = this.#groupSize
    const [B, N, D] = x.shape
    if (G === undefined || G === N) return [x, o]
    if ((B * N) % G !== 0) fail('SHAPE', op, `groupSize = ${G} must divide the ${B} · ${N} tokens of x`)
    const groups = [(B * N) / G, G]
    const cut = (name: string, tensor: Tensor | undefined, before: readonly number[], after: readonly number[]) => {
      if (!isTensor(tensor)) return tensor
      checkTensor(op, name, tensor, { dtype: tensor.dtype, device: tensor.device, shape: [...before, B, N, ...after] })
      return reshape(tensor, [...before, ...groups, ...after])
    }
    const { uniforms, gumbelUniforms, jitterUniforms, dropoutUniforms } = readRandom(op, o.random)
    const random = o.random && {
      uniforms: cut('uniforms', uniforms, isTensor(uniforms) ? uniforms.shape.slice(0, 1) : [], []),
      gumbelUniforms: cut('gumbelUniforms', gumbelUniforms, [], [this.numExperts]),
      jitterUniforms: cut('jitterUniforms', jitterUniforms, [], [D]),
      dropoutUniforms: cut('dropoutUniforms', dropoutUniforms, [], [D]),
    }
    return [reshape(x, [...groups, D]), { ...o, random, mask: cut('mask', o.mask, [], []) }]
  }

  #apply<D extends DType>(x: Tensor<D>, routing: RouteResult<D>, straightThrough: boolean): Tensor<D> {
    const { experts } = this
    if (!(experts instanceof Experts)) return this.#applyUsers(x, routing, experts, straightThrough)
    return expertFfn(x, routing, experts, { straightThrough, ...pick(experts, gemmOptions, activationOptions) })
  }

  /** Each assignment as a token of its own: its input is weight · x, and the K outputs are added up. */
  #applyScaled<D extends DType>(x: Tensor<D>, routing: RouteResult<D>): Tensor<D> {
    const [B, N, K] = routing.expertIndex.shape
    const each = <T extends Tensor>(choices: T): T => reshape(choices, [B, N * K, 1]) as T
    const { expertIndex, gate, kept, position, weight } = routing
    const scaled = mul(reshape(x, [B, N, 1, this.dim]), reshape(weight, [B, N, K, 1]))
    const alone = {
      ...routing,
      expertIndex: each(expertIndex),
      gate: each(gate),
      kept: each(kept),
      position: each(position),
      weight: each(kept.to(x.dtype)),
      mask: null,
    }
    const y = this.#apply(reshape(scaled, [B, N * K, this.dim]), alone, false)
    return sum(reshape(y, [B, N, K, this.outputDim]), 2)
  }

  #applyUsers<D extends DType>(
    x: Tensor<D>,
    routing: RouteResult<D>,
    experts: UserExperts,
    straightThrough: boolean,
  ): Tensor<D> {
    const [B, , D] = x.shape
    const slot = [B, routing.capacity, D]
    return scope(() => {
      const dispatched = dispatch(x, routing, { straightThrough })
      const results = experts.experts.map((expert, i) => {
        const rows = reshape(slice(dispatched, 0, i, i + 1), slot)
        const y = (expert as Module & { forward(x: Tensor): unknown }).forward(rows)
        if (!isTensor(y) || !sameShape(y.shape, slot)) {
          fail(
            'SHAPE',
            'MoE.forward',
            `expert ${i} must return a tensor ${showShape(slot)}, got ${isTensor(y) ? showShape(y.shape) : show(y)}`,
          )
        }
        return reshape(y, [1, ...slot])
      })
      return combine(concat(results as Tensor<D>[], 0), routing)
    })
  }

  protected override stateName(property: string): string {
    return property === 'sharedExperts' ? 'shared_experts' : property
  }

  #checkFinite(op: string, name: string, x: Tensor): void {
    if (this.#throwNonFinite && !allFinite(handleOf(x))) {
      throw new MoeError('NON_FINITE', op, `${name} must be finite, got a NaN or an infinity`)
    }
  }
}

/**
 * Custom experts, under the names `experts.{i}.…`. {@link MoE} makes it from its option `experts`.
 *
 * @example
 * ```ts
 * const moe = new MoE({ dim: 32, experts: [new Linear(32, 32), new FeedForward(32)] })
 * console.log(moe.forward(randn([1, 8, 32])).outputs.shape) // → [ 1, 8, 32 ]
 * ```
 */
export class UserExperts extends Module {
  /** E modules, [B, C, D] → [B, C, D]. */
  readonly experts: readonly Module[]

  /** {@link MoE} checks them. */
  constructor(experts: readonly Module[]) {
    super()
    this.experts = experts
  }
}

function checkExperts(op: string, experts: unknown, count: number): Module[] {
  const list = copyArray(op, 'experts', experts, 2 ** 20)
  if (list.length !== count) fail('OPTION', op, `experts must hold numExperts = ${count} modules, got ${list.length}`)
  return list.map((expert, i) => {
    const module = checkModule(op, `experts[${i}]`, expert)
    if (typeof (module as { forward?: unknown }).forward !== 'function')
      fail('OPTION', op, `experts[${i}] must have a forward method`)
    return module
  })
}
