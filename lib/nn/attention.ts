import { checkInteger, fail } from '../check.js'
import type { DType } from '../dtype.js'
import { attention } from '../ops/attention.js'
import { boolean, integer, type OptionsOf, reader } from '../options.js'
import { allOrNone, callScope } from '../scope.js'
import type { Tensor } from '../tensor.js'
import { gemmOptions, Linear, layerOptions, type ProductLayerOptions } from './linear.js'
import { Module } from './module.js'

const attentionOptions = {
  /** A divisor of D. Default 8. */
  heads: integer({ min: 1, default: 8 }),
  /** Biases of the four projections. Default false. */
  bias: boolean({ default: false }),
}

/** Options of {@link CausalSelfAttention}. */
export interface AttentionLayerOptions extends ProductLayerOptions, OptionsOf<typeof attentionOptions> {}

const readOptions = reader(attentionOptions, layerOptions, gemmOptions)

/**
 * Multi-head self-attention (Vaswani et al., arXiv 1706.03762, §3.2) in which a token sees itself and what is before it:
 * x [B, N, D] → [B, N, D], by {@link ops.attention} between linear projections. `computeDtype` is for the projections.
 *
 * @example
 * ```ts
 * const attend = new CausalSelfAttention(32, { heads: 4 })
 * console.log(attend.forward(randn([2, 10, 32])).shape) // → [ 2, 10, 32 ]
 * ```
 */
export class CausalSelfAttention extends Module {
  /** D is split into this many parts. */
  readonly heads: number
  /** D → D, as the other three. */
  query: Linear
  /** Keys. */
  key: Linear
  /** Values. */
  value: Linear
  /** From the joined heads to the result. */
  out: Linear

  /** `dim` is D. Errors: OPTION unless it is a multiple of `heads`. */
  constructor(dim: number, options?: AttentionLayerOptions) {
    super()
    const op = 'CausalSelfAttention'
    const { heads, ...layer } = readOptions(op, options)
    checkInteger(op, 'dim', dim, 1)
    if (dim % heads !== 0) fail('OPTION', op, `dim must be a multiple of heads, got ${dim} and ${heads}`)
    this.heads = heads
    const projection = () => new Linear(dim, dim, layer)
    ;[this.query, this.key, this.value, this.out] = allOrNone(() => [
      projection(),
      projection(),
      projection(),
      projection(),
    ])
  }

  /** x [B, N, D] → [B, N, D]. Errors: SHAPE, DTYPE, DEVICE. */
  forward<D extends DType>(x: Tensor<D>): Tensor<D> {
    return callScope(() => {
      const y = attention(this.query.forward(x), this.key.forward(x), this.value.forward(x), { heads: this.heads })
      return this.out.forward(y)
    })
  }
}
