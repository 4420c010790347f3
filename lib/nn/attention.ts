import { allOrNone, callScope } from '../autograd/scope.js'
import { attention } from '../ops/attention.js'
import { type AttentionCache, type CachePlace, cachedAttention } from '../ops/cached-attention.js'
import { rotary } from '../ops/rotary.js'
import { checkInteger, checkOptions, fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { boolean, integer, number, type OptionsOf, onlyIfSet, reader } from '../runtime/options.js'
import { zeros } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'
import { gemmOptions, Linear, layerOptions, type ProductLayerOptions } from './linear.js'
import { Module } from './module.js'

const attentionOptions = {
  /** A divisor of D. Default 8. */
  heads: integer({ min: 1, default: 8 }),
  /** A divisor of `heads`: each head of keys and values serves heads / kvHeads heads of queries. Default: `heads`. */
  kvHeads: integer({ min: 1, atMost: 'heads', default: ({ heads }) => heads as number }),
  /** Biases of the four projections. Default false. */
  bias: boolean({ default: false }),
  /** Queries and keys are rotated by their positions, by {@link ops.rotary}. Default false. */
  rotary: boolean({ default: false }),
  ...onlyIfSet('rotary', {
    /** `base` of the angles. Default 10000. */
    rotaryBase: number({ min: 1, default: 10000 }),
  }),
}

const causalOptions = {
  /** A token sees only itself and what is before it. Default false. */
  causal: boolean({ default: false }),
}

/** Options of {@link CausalSelfAttention}. */
export interface CausalSelfAttentionOptions extends ProductLayerOptions, OptionsOf<typeof attentionOptions> {}

/** Options of {@link Attention}. */
export interface AttentionLayerOptions extends CausalSelfAttentionOptions, OptionsOf<typeof causalOptions> {}

const readCausal = reader(attentionOptions, layerOptions, gemmOptions)
const readOptions = reader(attentionOptions, causalOptions, layerOptions, gemmOptions)

/** Options of a forward of {@link Attention}. */
export interface AttentionForwardOptions {
  /** [B, N], of any dtype: no token sees one where it is 0. */
  mask?: Tensor | null
  /** x holds the next tokens of sequences whose earlier ones are in a cache of {@link Attention.cache}; without a mask. */
  cache?: (AttentionCache & CachePlace) | null
}

/**
 * Multi-head self-attention (Vaswani et al., arXiv 1706.03762, §3.2): x [B, N, D] → [B, N, D], by {@link ops.attention}
 * between linear projections, optionally causal, with rotary positions and with grouped queries, as in Llama.
 * `computeDtype` is for the projections.
 *
 * @example
 * ```ts
 * const attend = new Attention(32, { heads: 4, kvHeads: 2, rotary: true, causal: true })
 * const mask = tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
 * console.log(attend.forward(randn([2, 4, 32]), { mask }).shape, attend.key.weight.shape) // → [ 2, 4, 32 ] [ 16, 32 ]
 * ```
 */
export class Attention extends Module {
  /** D is split into this many parts. */
  readonly heads: number
  /** Of keys and values. */
  readonly kvHeads: number
  /** Whether a token sees itself and what is before it alone. */
  readonly causal: boolean
  /** The base of the rotary positions, or null without. */
  readonly rotaryBase: number | null
  /** D → D. */
  query: Linear
  /** D → D · kvHeads / heads. */
  key: Linear
  /** D → D · kvHeads / heads. */
  value: Linear
  /** From the joined heads to the result, D → D. */
  out: Linear

  /** `dim` is D. Errors: OPTION unless it is a multiple of `heads`, and with rotary positions of 2 · heads. */
  constructor(dim: number, options?: AttentionLayerOptions) {
    super()
    const op = new.target.name
    const { heads, kvHeads, causal, rotary, rotaryBase, ...layer } = readOptions(op, options)
    checkInteger(op, 'dim', dim, 1)
    if (dim % heads !== 0) fail('OPTION', op, `dim must be a multiple of heads, got ${dim} and ${heads}`)
    if (heads % kvHeads !== 0) fail('OPTION', op, `heads must be a multiple of kvHeads, got ${heads} and ${kvHeads}`)
    if (rotary && (dim / heads) % 2 !== 0)
      fail('OPTION', op, `dim must be a multiple of 2 · heads for rotary positions, got ${dim} and ${heads}`)
    this.heads = heads
    this.kvHeads = kvHeads
    this.causal = causal
    this.rotaryBase = rotary ? rotaryBase : null
    const projection = (width: number) => new Linear(dim, width, layer)
    const kvWidth = (dim / heads) * kvHeads
    ;[this.query, this.key, this.value, this.out] = allOrNone(() => [
      projection(dim),
      projection(kvWidth),
      projection(kvWidth),
      projection(dim),
    ])
  }

  /** x [B, N, D] → [B, N, D]. Errors: SHAPE, DTYPE, DEVICE, OPTION; NON_FINITE for a NaN in the mask. */
  forward<D extends DType>(x: Tensor<D>, options?: AttentionForwardOptions): Tensor<D> {
    const op = `${this.constructor.name}.forward`
    const { mask, cache } = checkOptions<AttentionForwardOptions>(op, options, ['mask', 'cache'])
    if (cache) return this.#cached(op, x, cache, mask)
    const { heads, kvHeads, causal } = this
    return callScope(() => {
      const q = this.#placed(this.query.forward(x), heads)
      const k = this.#placed(this.key.forward(x), kvHeads)
      return this.out.forward(attention(q, k, this.value.forward(x), { heads, kvHeads, causal, mask }))
    })
  }

  /**
   * An empty cache for {@link AttentionForwardOptions.cache}: of `slots` sequences of at most `length` tokens, with the
   * dtype and device of the layer. Errors: OPTION, OUT_OF_MEMORY.
   *
   * @example
   * ```ts
   * const attend = new CausalSelfAttention(32, { heads: 4 })
   * const cache = attend.cache(1, 16)
   * const next = (n: number) => attend.forward(randn([1, 1, 32]), { cache: { ...cache, position: tensor(Int32Array.of(n)) } })
   * noGrad(() => console.log(next(0).shape, next(1).shape)) // → [ 1, 1, 32 ] [ 1, 1, 32 ]
   * ```
   */
  cache(slots: number, length: number): AttentionCache {
    const op = `${this.constructor.name}.cache`
    checkInteger(op, 'slots', slots, 1)
    checkInteger(op, 'length', length, 1)
    const { weight } = this.key
    const dtype = weight.dtype === 'f64' ? 'f64' : 'f32' // of what a frozen weight gives
    const made = () => zeros([slots, length, weight.shape[0]], { dtype, device: weight.device })
    const keys = made()
    try {
      return { keys, values: made() }
    } catch (error) {
      keys.dispose()
      throw error
    }
  }

  #cached<D extends DType>(
    op: string,
    x: Tensor<D>,
    cache: AttentionCache & CachePlace,
    mask: Tensor | null | undefined,
  ): Tensor<D> {
    if (mask) fail('OPTION', op, 'mask is not for a cache')
    if (!this.causal) fail('OPTION', op, 'a cache is for causal attention')
    const { heads, kvHeads } = this
    return callScope(() => {
      const q = this.#placed(this.query.forward(x), heads, cache.position)
      const k = this.#placed(this.key.forward(x), kvHeads, cache.position)
      return this.out.forward(cachedAttention(q, k, this.value.forward(x), { ...cache, heads, kvHeads }))
    })
  }

  #placed<D extends DType>(x: Tensor<D>, heads: number, position?: Tensor): Tensor<D> {
    return this.rotaryBase === null ? x : rotary(x, { heads, base: this.rotaryBase, position })
  }
}

/**
 * {@link Attention} in which a token sees itself and what is before it.
 *
 * @example
 * ```ts
 * const attend = new CausalSelfAttention(32, { heads: 4 })
 * console.log(attend.forward(randn([2, 10, 32])).shape) // → [ 2, 10, 32 ]
 * ```
 */
export class CausalSelfAttention extends Attention {
  /** `dim` is D. Errors as those of {@link Attention}. */
  constructor(dim: number, options?: CausalSelfAttentionOptions) {
    super(dim, { ...readCausal('CausalSelfAttention', options), causal: true })
  }
}
