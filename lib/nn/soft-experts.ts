import { allOrNone, keep } from '../autograd/scope.js'
import { expertFfn } from '../ops/expert-ffn.js'
import { layerNorm } from '../ops/layernorm.js'
import { reshape } from '../ops/reshape.js'
import type { ComputeDType, DType } from '../runtime/dtype.js'
import type { ValuesOf } from '../runtime/options.js'
import { ones, zeros } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'
import { Dropout } from './dropout.js'
import type { ExpertShare } from './expert-share.js'
import { type gemmOptions, type LayerOptions, type layerOptions, uniformParameter } from './linear.js'
import { Module } from './module.js'
import { newParameter, type Parameter } from './parameter.js'
import type { StateEntry } from './state.js'

interface ExpertsShape {
  /** E, of all ranks. */
  numExperts: number
  /** Those of this rank; null for all. */
  share: ExpertShare | null
  dim: number
  hidden: number
  geglu: boolean
  dropout: number
}

/** Names of one expert's tensors in a state dict: 1 is its activation and 2 its dropout. */
const expertNames = [
  ['w1', '0.weight'],
  ['b1', '0.bias'],
  ['w2', '3.weight'],
  ['b2', '3.bias'],
] as const

/**
 * The experts of a {@link SoftMoE}, stacked: two linear maps with gelu or GEGLU and dropout between them. A state dict
 * has each expert's own, `experts.{i}.0.weight` …, as in soft-moe-pytorch.
 *
 * @example
 * ```ts
 * const { experts } = new SoftMoE({ dim: 12, numExperts: 4, numSlots: 2 })
 * console.log(experts.w1.shape, experts.w2.shape) // → [ 4, 48, 12 ] [ 4, 12, 48 ]
 * ```
 */
export class SoftExperts extends Module {
  /** What the operands of the GEMMs are rounded to. */
  readonly computeDtype: ComputeDType
  /** P = 2H with GEGLU, else H. */
  readonly geglu: boolean
  /** Of the hidden rows, in training. */
  readonly dropout: Dropout
  /** [E, P, D]; with GEGLU the first half values, the second half gates. Uniform in ±1/√D at the start, as in PyTorch. */
  w1: Parameter
  /** [E, P], likewise. */
  b1: Parameter
  /** [E, D, H], uniform in ±1/√H. */
  w2: Parameter
  /** [E, D], likewise. */
  b2: Parameter
  readonly #share: ExpertShare | null

  /** {@link SoftMoE} checks the options. */
  constructor(
    { numExperts, share, dim, hidden, geglu, dropout }: ExpertsShape,
    layer: ValuesOf<[typeof layerOptions, typeof gemmOptions]>,
  ) {
    super()
    this.#share = share
    this.computeDtype = layer.computeDtype
    this.geglu = geglu
    this.dropout = new Dropout(dropout)
    const rows = geglu ? 2 * hidden : hidden
    const [inner, outer] = [1 / Math.sqrt(dim), 1 / Math.sqrt(hidden)]
    const { first, count } = share ?? { first: 0, count: numExperts }
    const each = (shape: readonly number[], bound: number) => uniformParameter([count, ...shape], bound, layer, first)
    ;[this.w1, this.b1, this.w2, this.b2] = allOrNone(() => [
      each([rows, dim], inner),
      each([rows], inner),
      each([dim, hidden], outer),
      each([dim], outer),
    ])
  }

  protected override gemmWeights(): readonly Parameter[] {
    return [this.w1, this.w2]
  }

  /** @internal */
  get share(): ExpertShare | null {
    return this.#share
  }

  /** Rows of each expert, x [E, B · S, D] → [E, B · S, D]; `sizes` are B, N and S. */
  forward<D extends DType>(x: Tensor<D>, sizes: readonly [B: number, N: number, S: number]): Tensor<D> {
    const { w1, b1, w2, b2, computeDtype } = this
    const weights = { w1, b1, multBias: null, w2, b2 }
    const dropout = this.dropout.training ? this.dropout.p : 0
    const options = { activation: this.geglu ? 'geglu' : 'gelu', computeDtype, dropout } as const
    if (!this.#share) return expertFfn(x, null, weights, options)
    const traffic = this.#share.slots(this.#share.sizesOf('SoftMoE.forward', sizes))
    const rows = reshape(x, [x.shape[0] * x.shape[1], x.shape[2]])
    return reshape(traffic.back(traffic.ffn(traffic.there(rows), weights, options)), x.shape)
  }

  /** Every expert's own slices. */
  override *stateEntries(): Iterable<StateEntry> {
    const first = this.#share?.first ?? 0
    for (let index = 0; index < this.w1.shape[0]; index++)
      for (const [property, name] of expertNames)
        yield { name: `experts.${first + index}.${name}`, tensor: this[property], index }
  }

  override stateElsewhere(): Iterable<string> {
    return this.#share?.namesElsewhere() ?? []
  }
}

/**
 * The layer norm of soft-moe-pytorch: (x − mean) / √(var + 1e-5) · gamma + beta over the last axis, where beta is a
 * buffer and not trained.
 *
 * @example
 * ```ts
 * const { norm } = new SoftMoE({ dim: 12, numSlots: 2, useLayerNorm: true })
 * console.log([...norm.stateEntries()].map(({ name }) => name)) // → [ 'gamma', 'beta' ]
 * ```
 */
export class BufferLayerNorm extends Module {
  /** [D], ones at the start. */
  gamma: Parameter
  /** [D], zeros unless a loaded state has others. */
  readonly beta: Tensor

  /** {@link SoftMoE} checks the options. */
  constructor(dim: number, layer: LayerOptions) {
    super()
    ;[this.gamma, this.beta] = allOrNone(() => [newParameter(() => ones([dim], layer)), keep(zeros([dim], layer))])
  }

  /** x [..., D] → [..., D]. */
  forward<D extends DType>(x: Tensor<D>): Tensor<D> {
    return layerNorm(x, this.gamma, this.beta)
  }

  /** With the buffer. */
  override *stateEntries(): Iterable<StateEntry> {
    yield { name: 'gamma', tensor: this.gamma }
    yield { name: 'beta', tensor: this.beta }
  }
}
