import { allOrNone, callScope, noGrad } from '../autograd/scope.js'
import { add, mul, sub } from '../ops/binary.js'
import { to } from '../ops/cast.js'
import { linear } from '../ops/linear.js'
import { matmul } from '../ops/matmul.js'
import { reshape } from '../ops/reshape.js'
import { converted, maskHandle } from '../ops/routing.js'
import { softmax } from '../ops/softmax.js'
import { transpose } from '../ops/strided.js'
import { log, neg, relu } from '../ops/unary.js'
import { checkInteger, fail, showShape, sizeOf } from '../runtime/check.js'
import { type DType, dtypeCode } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'
import {
  boolean,
  integer,
  number,
  type OptionsOf,
  optional,
  pick,
  rate,
  reader,
  unchecked,
  type ValuesOf,
} from '../runtime/options.js'
import { rand, randn } from '../tensor/create.js'
import { checkTensor, type Tensor, wrap } from '../tensor/tensor.js'
import { shareOf, shareOptions } from './expert-share.js'
import { expertHiddenSize } from './experts.js'
import { gemmOptions, layerOptions, type ProductLayerOptions } from './linear.js'
import { Module } from './module.js'
import { RMSNorm } from './norm.js'
import { withoutPadding } from './padding.js'
import { newParameter, type Parameter } from './parameter.js'
import { BufferLayerNorm, SoftExperts } from './soft-experts.js'

const softMoeOptions = {
  /** D */
  dim: integer({ min: 1 }),
  /** E. Default 4. */
  numExperts: integer({ min: 1, default: 4 }),
  /** S, slots of each expert per sequence. Either this or `seqLen`. */
  numSlots: optional(integer({ min: 1 })),
  /** S = trunc(seqLen / numExperts): as many slots as tokens. A forward takes sequences of any length. */
  seqLen: optional(integer({ min: 1 })),
  /** The hidden size is trunc(dim · expertMult), with `geglu` trunc(dim · expertMult · 2 / 3). Default 4. */
  expertMult: number({ min: 0, default: 4 }),
  /** GEGLU experts (Shazeer, arXiv 2002.05202) instead of gelu. Default false. */
  geglu: boolean({ default: false }),
  /** Layer norms instead of RMSNorms, of tokens and of slot embeddings. Default false. */
  useLayerNorm: boolean({ default: false }),
  /** Of the experts' hidden rows, in training; from 0, below 1. Default 0. */
  dropout: rate(),
}

/** Options of {@link SoftMoE}; `dim`, and `numSlots` or `seqLen`, are required. */
export interface SoftMoEOptions
  extends OptionsOf<typeof softMoeOptions>,
    OptionsOf<typeof shareOptions>,
    ProductLayerOptions {}

const readOptions = reader(softMoeOptions, shareOptions, layerOptions, gemmOptions)

const randomOptions = {
  /** [B, N, E, S] in [0, 1), with noise. */
  gumbelUniforms: unchecked<Tensor>(),
}

/** Random numbers of the caller, so that a forward can be repeated. */
export interface SoftMoERandom extends OptionsOf<typeof randomOptions> {}

const readRandom = reader(randomOptions)

const forwardOptions = {
  /** [B, N] of any dtype and on any device: 0 is padding, any other number is a token, NaN an error. */
  mask: unchecked<Tensor>(),
  /** Adds Gumbel noise to the logits, in evaluation too: noiseMult · −log(−log u), u uniform in [0, 1). Default false. */
  addNoise: boolean({ default: false }),
  /** Factor of the noise. Default 1. */
  noiseMult: number({ default: 1 }),
  /** Numbers to use instead of sampled ones. */
  random: unchecked<SoftMoERandom>(),
}

/** Options of {@link SoftMoE.forward}. */
export interface SoftMoEForwardOptions extends OptionsOf<typeof forwardOptions> {}

const readForwardOptions = reader(forwardOptions)

const stateNames: Record<string, string> = { slotEmbeds: 'slot_embeds', slotNorm: 'slot_norm' }

/**
 * Soft mixture of experts (Puigcerver et al., arXiv 2308.00951, algorithm 1) with the mathematics and state names of
 * soft-moe-pytorch 0.1.9. A slot is a weighted mean of all tokens of its sequence, an expert computes its S slots, and a
 * token is a weighted mean of all slots: nothing is dropped, every expert has the same load, and there is no auxiliary
 * loss. As in a mean over the sequence, the output of a token depends on later tokens.
 *
 * @example
 * ```ts
 * const layer = new SoftMoE({ dim: 32, numExperts: 4, numSlots: 2 })
 * console.log(layer.forward(randn([2, 16, 32])).shape) // → [ 2, 16, 32 ]
 * ```
 */
export class SoftMoE extends Module {
  /** D */
  readonly dim: number
  /** E */
  readonly numExperts: number
  /** S, of each expert. */
  readonly numSlots: number
  /** [E, S, D], standard normal at the start. */
  slotEmbeds: Parameter
  /** Of the tokens. */
  readonly norm: RMSNorm | BufferLayerNorm
  /** Of the slot embeddings. */
  readonly slotNorm: RMSNorm | BufferLayerNorm
  /** Two linear maps each. */
  readonly experts: SoftExperts

  /** Errors: OPTION, DTYPE, DEVICE, BACKEND_UNAVAILABLE, OUT_OF_MEMORY. */
  constructor(options: SoftMoEOptions) {
    super()
    const op = 'SoftMoE'
    const o = readOptions(op, options)
    const { dim, numExperts, geglu, dropout } = o
    const layer = pick(o, layerOptions)
    const hidden = geglu ? expertHiddenSize(dim, o.expertMult, op) : plainHiddenSize(op, dim, o.expertMult)
    const numSlots = slotsOf(op, o)
    const share = shareOf(numExperts, o)
    const norm = () => (o.useLayerNorm ? new BufferLayerNorm(dim, layer) : new RMSNorm(dim, layer))
    this.dim = dim
    this.numExperts = numExperts
    this.numSlots = numSlots
    ;[this.slotEmbeds, this.norm, this.slotNorm, this.experts] = allOrNone(() => [
      newParameter(() => randn([numExperts, numSlots, dim], layer)),
      norm(),
      norm(),
      new SoftExperts({ numExperts, share, dim, hidden, geglu, dropout }, pick(o, layerOptions, gemmOptions)),
    ])
  }

  /**
   * Sequences x [B, N, D], rows [B, D] (each a sequence of one token) or images [B, D, H, W] (N = H · W tokens each), of
   * the dtype and device of the layer → the shape of x. With x̂ = norm(x) and slot embeddings Φ̂ = slotNorm(Φ):
   *
   * logits l = x̂ Φ̂ᵀ [B, N, E·S], plus noise; slots = softmax(l over N)ᵀ x̂; outputs = softmax(l over E·S) · experts(slots).
   *
   * Padding has no weight in a slot, whatever is in its rows, and gets the mean of all slots. Errors: SHAPE, DTYPE,
   * DEVICE, DISPOSED, OPTION; NON_FINITE for a NaN in `mask`, on a GPU by the next operation that waits for it.
   *
   * @example
   * ```ts
   * const layer = new SoftMoE({ dim: 8, seqLen: 16 })
   * const mask = tensor([Array(12).fill(1).concat(Array(4).fill(0))]) // the last four tokens are padding
   * console.log(layer.forward(randn([1, 16, 8]), { mask, addNoise: true }).shape) // → [ 1, 16, 8 ]
   * ```
   */
  forward<D extends DType>(x: Tensor<D>, options?: SoftMoEForwardOptions): Tensor<D> {
    const op = 'SoftMoE.forward'
    const o = readForwardOptions(op, options)
    const { gumbelUniforms } = readRandom(op, o.random)
    checkTensor(op, 'x', x)
    const { dim: D, numExperts: E, numSlots: S } = this
    const image = x.shape.length === 4
    const [B, N] = tokensOf(op, x.shape, D)
    const { dtype, device } = this.slotEmbeds
    checkTensor(op, 'x', x, { shape: x.shape, dtype, device })
    return callScope(() => {
      const input = image ? transpose(reshape(x, [B, D, N])) : reshape(x, [B, N, D])
      const keep = maskOf(op, o.mask, input)
      const tokens = this.norm.forward(keep ? withoutPadding(input, keep) : input)
      const noise = o.addNoise ? mul(this.#noise(op, tokens, gumbelUniforms), o.noiseMult) : null
      const logits = this.#logits(tokens, noise, keep)
      const slots = matmul(softmax(transpose(logits)), tokens) // [B, E·S, D]
      const rows = transpose(reshape(slots, [B, E, S * D]), 0, 1)
      const results = this.experts.forward(reshape(rows, [E, B * S, D]), [B, N, S])
      const ofSequences = transpose(reshape(results, [E, B, S * D]), 0, 1)
      const y = matmul(softmax(logits), reshape(ofSequences, [B, E * S, D]))
      return reshape(image ? transpose(y) : y, x.shape)
    })
  }

  /** [B, N, E·S] of normalised tokens [B, N, D]. */
  #logits<D extends DType>(tokens: Tensor<D>, noise: Tensor | null, keep: Tensor | null): Tensor<D> {
    const embeds = reshape(this.slotNorm.forward(this.slotEmbeds), [this.numExperts * this.numSlots, this.dim])
    const clean = linear(tokens, embeds)
    const logits = noise ? add(clean, reshape(noise, clean.shape)) : clean
    return keep ? withoutLogits(logits, keep) : logits
  }

  /** Gumbel noise [B, N, E, S]; each logarithm is of max(·, 1e-20), as in the package. */
  #noise(op: string, { shape: [B, N], dtype, device }: Tensor, gumbelUniforms: Tensor | undefined): Tensor {
    const shape = [B, N, this.numExperts, this.numSlots]
    const inDtype = (handle: Handle) => native.convert(handle, dtypeCode(dtype))
    const given = converted(op, 'gumbelUniforms', gumbelUniforms, shape, device, inDtype)
    return noGrad(() => {
      // sampled in f32, as those of a router, so that f64 has the same numbers
      const uniforms = given === null ? to(rand(shape, { device }), dtype) : wrap(given, { shape, dtype, device })
      return neg(clampedLog(neg(clampedLog(uniforms))))
    })
  }

  protected override stateName(property: string): string {
    return stateNames[property] ?? property
  }
}

const plainHiddenSize = (op: string, dim: number, mult: number): number =>
  checkInteger(op, 'the hidden size dim · expertMult', Math.trunc(dim * mult), 1)

function slotsOf(op: string, { numSlots, seqLen, numExperts }: ValuesOf<[typeof softMoeOptions]>): number {
  if ((numSlots === undefined) === (seqLen === undefined)) {
    const got = numSlots === undefined ? 'neither' : 'both'
    fail('OPTION', op, `options must have one of numSlots and seqLen, got ${got}`)
  }
  if (numSlots !== undefined) return numSlots
  const slots = Math.trunc(seqLen! / numExperts)
  if (slots < 1) fail('OPTION', op, `seqLen must be at least numExperts = ${numExperts}, got ${seqLen}`)
  return slots
}

/** B and N of x. */
function tokensOf(op: string, shape: readonly number[], D: number): [B: number, N: number] {
  const [B, ...rest] = shape
  if (rest.length === 1 && rest[0] === D) return [B, 1]
  if (rest.length === 2 && rest[1] === D) return [B, rest[0]]
  if (rest.length === 3 && rest[0] === D) return [B, sizeOf(rest.slice(1))]
  return fail('SHAPE', op, `x must be [B, N, ${D}], [B, ${D}] or [B, ${D}, H, W], got ${showShape(shape)}`)
}

/** i32 [B, N]: 1 for a token, 0 for padding. */
function maskOf(op: string, mask: unknown, { shape: [B, N], device }: Tensor): Tensor | null {
  const handle = maskHandle(op, mask, B, N, device)
  return handle === null ? null : wrap(handle, { shape: [B, N], dtype: 'i32', device })
}

/** The logits of padding become the lowest number, without a gradient: no weight in a slot, equal weights of all slots. */
function withoutLogits<D extends DType>(logits: Tensor<D>, keep: Tensor): Tensor<D> {
  const factor = reshape(to(keep, logits.dtype), [...keep.shape, 1])
  const largest = logits.dtype === 'f64' ? Number.MAX_VALUE : (2 - 2 ** -23) * 2 ** 127
  return add(mul(logits, factor), mul(sub(factor, 1), largest))
}

const leastLog = 1e-20
/** log(max(x, 1e-20)) */
const clampedLog = (x: Tensor): Tensor => log(add(relu(sub(x, leastLog)), leastLog))
