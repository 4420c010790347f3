import { allOrNone } from '../autograd/scope.js'
import { type Activation, type ActivationOptions, activationOptions, isGated } from '../ops/activation.js'
import { expertFfnWith, readFfnOptions } from '../ops/expert-ffn.js'
import type { RouteResult } from '../ops/routing.js'
import { checkInteger } from '../runtime/check.js'
import type { ComputeDType, DType } from '../runtime/dtype.js'
import { integer, type OptionsOf, oneOf, optional, pick, reader } from '../runtime/options.js'
import { ones } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'
import { shareOf, shareOptions } from './expert-share.js'
import { gemmOptions, layerOptions, type ProductLayerOptions, uniformParameter } from './linear.js'
import { newParameter, type Parameter } from './parameter.js'
import { type ExpertsCall, type Routed, RoutedExperts, runExperts } from './routed-experts.js'
import type { StateEntry } from './state.js'

/**
 * H = trunc(D · mult · 2 / 3), in double precision from left to right: the hidden size of an expert by `expertHiddenMult`.
 * Errors: OPTION if it is below 1.
 *
 * @example
 * ```ts
 * console.log(expertHiddenSize(512, 4)) // → 1365
 * ```
 */
export const expertHiddenSize = (dim: number, mult: number, op = 'expertHiddenSize'): number =>
  checkInteger(op, 'the hidden size dim · mult · 2 / 3', Math.trunc((dim * mult * 2) / 3), 1)

export const expertOptions = {
  /**
   * true: as in the reference. 'linear': of the two linear maps only, no multiplicative bias (gpt-oss). false: none, as
   * in most open models. Default true.
   */
  expertBiases: oneOf([true, false, 'linear'], { default: true }),
  /** O, the width of the output. Default: D. */
  outputDim: optional(integer({ min: 1 })),
}

/** Names of one expert's tensors in a state dict, for the layer index that the activation has in the reference. */
const expertNames = (first: number) =>
  [
    ['w1', `net.${first}.weight`],
    ['b1', `net.${first}.bias`],
    ['multBias', `net.${first + 1}.mult_bias`],
    ['w2', `net.${first + 2}.weight`],
    ['b2', `net.${first + 2}.bias`],
  ] as const

/** Options of {@link Experts}. */
export interface ExpertsOptions
  extends ProductLayerOptions,
    ActivationOptions,
    OptionsOf<typeof expertOptions>,
    OptionsOf<typeof shareOptions> {}

const readOptions = reader(layerOptions, gemmOptions, activationOptions, expertOptions, shareOptions)

/**
 * Parameters of E experts, stacked; {@link ops.expertFfn} applies them. A state dict has each expert's own,
 * `experts.{i}.net.0.weight` …, as in st-moe-pytorch. Made by {@link MoE}.
 *
 * @example
 * ```ts
 * const { experts } = new MoE({ dim: 12, numExperts: 4 })
 * if (experts instanceof Experts) console.log(experts.w1.shape, experts.w2.shape) // → [ 4, 64, 12 ] [ 4, 12, 32 ]
 * ```
 */
export class Experts extends RoutedExperts {
  /** What the operands of the GEMMs are rounded to. */
  readonly computeDtype: ComputeDType
  /** Between the two linear maps; P = 2H if it is gated, else H. */
  readonly activation: Activation
  /** The formula of gelu. */
  readonly geluApproximate: 'none' | 'tanh'
  /** See {@link ActivationOptions.swigluLimit}. */
  readonly swigluLimit: number | null
  /** See {@link ActivationOptions.swigluAlpha}. */
  readonly swigluAlpha: number | null
  /** [E, P, D], where E is the number of experts of this rank if there is a `processGroup`; of gated experts the first half values, the second half gates. Uniform in ±1/√P at the start. */
  w1: Parameter
  /** [E, P], uniform in ±1/√P; null without biases. */
  b1: Parameter | null
  /** [E, H], ones; null without biases, or if the activation is not gated. */
  multBias: Parameter | null
  /** [E, O, H], uniform in ±1/√O. */
  w2: Parameter
  /** [E, O], uniform in ±1/√O; null without biases. */
  b2: Parameter | null
  readonly #options: ReturnType<typeof readFfnOptions>

  /** E, D and H. Errors: OPTION, DTYPE, DEVICE. */
  constructor(numExperts: number, dim: number, hidden: number, options?: ExpertsOptions) {
    const layer = readOptions('Experts', options)
    checkInteger('Experts', 'numExperts', numExperts, 1)
    const share = shareOf(numExperts, layer)
    super(share)
    this.computeDtype = layer.computeDtype
    this.activation = layer.activation
    this.geluApproximate = layer.geluApproximate
    this.swigluLimit = layer.swigluLimit
    this.swigluAlpha = layer.swigluAlpha
    this.#options = readFfnOptions('Experts', pick(layer, gemmOptions, activationOptions))
    checkInteger('Experts', 'dim', dim, 1)
    checkInteger('Experts', 'hidden', hidden, 1)
    const gated = isGated(layer.activation)
    const rows = gated ? 2 * hidden : hidden
    const output = layer.outputDim ?? dim
    const [inner, outer] = [1 / Math.sqrt(rows), 1 / Math.sqrt(output)]
    const { expertBiases: biases } = layer
    const { first, count } = share ?? { first: 0, count: numExperts }
    const each = (shape: readonly number[], bound: number) => uniformParameter([count, ...shape], bound, layer, first)
    ;[this.w1, this.b1, this.multBias, this.w2, this.b2] = allOrNone(() => [
      each([rows, dim], inner),
      biases ? each([rows], inner) : null,
      gated && biases === true ? newParameter(() => ones([count, hidden], pick(layer, layerOptions))) : null,
      each([output, hidden], outer),
      biases ? each([output], outer) : null,
    ])
  }

  protected override gemmWeights(): readonly Parameter[] {
    return [this.w1, this.w2]
  }

  /** @internal */
  override run<D extends DType>(x: Tensor<D>, choice: RouteResult<D>, call: ExpertsCall): Routed<D> {
    const { share } = this
    const { dropout, dropless } = call
    return runExperts(x, choice, call, (x, routing, _inputs, straightThrough) => {
      const options = { ...this.#options }
      options.dropout = dropout
      options.straightThrough = straightThrough
      if (!share) return expertFfnWith(x, routing, this, options)
      const ragged = { ragged: dropless, straightThrough }
      return share.apply('MoE.forward', x, routing, ragged, (rows, traffic) => traffic.ffn(rows, this, options))
    })
  }

  /** Every expert's own slices. */
  override *stateEntries(): Iterable<StateEntry> {
    const first = this.share?.first ?? 0
    for (let index = 0; index < this.w1.shape[0]; index++)
      yield* this.expertEntries(index, `experts.${first + index}.`, 0)
  }

  /** Entries of one expert whose first Linear has the number `first` in the reference's list of layers. */
  *expertEntries(index: number, prefix: string, first: number): Iterable<StateEntry> {
    for (const [property, name] of expertNames(first)) {
      const tensor = this[property]
      if (tensor) yield { name: prefix + name, tensor, index }
    }
  }
}
