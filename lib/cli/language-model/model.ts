import {
  CausalSelfAttention,
  Embedding,
  Linear,
  Module,
  MoE,
  type MoEResult,
  Parameter,
  RMSNorm,
  randn,
  SparseMoEBlock,
  type Tensor,
  tensor,
} from '../../index.js'
import { hiddenSize } from '../../nn/experts.js'
import { isGated } from '../../ops/activation.js'
import { type ExpertOptions, expertsPerToken, moeOptions } from './layer-options.js'

export interface ModelOptions extends ExpertOptions {
  vocabulary: number
  context: number
  layers: number
  heads: number
}

/** A weight [out, in] from a normal distribution with this standard deviation. */
function normal(shape: readonly number[], deviation: number): Parameter {
  using unit = randn(shape)
  using values = unit.mul(deviation)
  return new Parameter(values)
}

/**
 * Positional embeddings [N, D], initialized as sines and cosines with periods from 2π to 2π N (Vaswani et al., arXiv
 * 1706.03762, §3.5, use longer periods) and then trained. From there attention quickly learns to look one character
 * back.
 */
function sinusoids(context: number, dim: number, deviation: number): Parameter {
  const values = Float32Array.from({ length: context * dim }, (_, i) => {
    const [position, channel] = [Math.floor(i / dim), i % dim]
    const angle = position * context ** (-Math.floor(channel / 2) / (dim / 2))
    return Math.SQRT2 * deviation * (channel % 2 === 0 ? Math.sin(angle) : Math.cos(angle))
  })
  using table = tensor(values, [context, dim])
  return new Parameter(table)
}

/** x += attention(norm(x)); x += experts(norm(x)). */
class Layer extends Module {
  norm: RMSNorm
  attention: CausalSelfAttention
  block: SparseMoEBlock

  constructor(options: ModelOptions) {
    super()
    const { dim, heads, layers, computeDtype } = options
    this.norm = new RMSNorm(dim)
    this.attention = new CausalSelfAttention(dim, { heads, computeDtype })
    // Small initial outputs, so that the residual stream does not grow with the number of layers.
    this.attention.out.weight.dispose()
    this.attention.out.weight = normal([dim, dim], 1 / Math.sqrt(2 * layers * dim))
    this.block = new SparseMoEBlock(new MoE(moeOptions(options)))
  }

  forward(x: Tensor): MoEResult {
    const attended = this.attention.forward(this.norm.forward(x)).add(x)
    return this.block.forward(attended)
  }
}

/**
 * A transformer with a mixture of experts in every layer: i32 characters [B, N] → logits [B, N, V] of the next ones.
 */
export class LanguageModel extends Module {
  readonly context: number
  tokens: Embedding
  positions: Parameter
  layers: Layer[]
  norm: RMSNorm
  head: Linear

  constructor(options: ModelOptions) {
    super()
    const { vocabulary, context, dim, layers, computeDtype } = options
    this.context = context
    this.tokens = new Embedding(vocabulary, dim)
    this.tokens.weight.dispose()
    this.tokens.weight = normal([vocabulary, dim], 0.1)
    this.positions = sinusoids(context, dim, 0.1)
    this.layers = Array.from({ length: layers }, () => new Layer(options))
    this.norm = new RMSNorm(dim)
    this.head = new Linear(dim, vocabulary, { computeDtype })
  }

  forward(characters: Tensor): { logits: Tensor; routed: MoEResult[] } {
    const length = characters.shape[1]
    const positions = length < this.context ? this.positions.slice(0, 0, length) : this.positions
    let x = this.tokens.forward(characters).add(positions)
    const routed: MoEResult[] = []
    for (const layer of this.layers) {
      const result = layer.forward(x)
      routed.push(result)
      x = result.outputs
    }
    return { logits: this.head.forward(this.norm.forward(x)), routed }
  }
}

/** P of an expert with its H: rows of its first matrix. */
const rowsOf = ({ activation = 'geglu' }: ModelOptions, hidden: number): number =>
  isGated(activation) ? 2 * hidden : hidden

/** H of the experts, and of the dense feed-forward after them. */
function hiddenSizes({ dim, expertHiddenDim }: ModelOptions): [number, number] {
  const usual = hiddenSize('st-moe train', dim, 4)
  return [expertHiddenDim ?? usual, usual]
}

/** The flags that the bytes below depend on. */
export const sizesOf = (options: ModelOptions): Record<string, number> => {
  const { layers, dim, experts, expertHiddenDim, sharedExperts, context } = options
  return {
    layers,
    dim,
    experts,
    ...(expertHiddenDim && { 'expert-hidden-dim': expertHiddenDim }),
    ...(sharedExperts && { 'shared-experts': sharedExperts }),
    context,
  }
}

/** Lower bound of the bytes of the weights. */
export function weightBytes(options: ModelOptions): number {
  const { vocabulary, context, dim, layers, experts, sharedExperts = 0 } = options
  const [ofExpert, ofDense] = hiddenSizes(options).map((hidden) => rowsOf(options, hidden) + hidden)
  const ofLayer = 4 * dim + (experts + sharedExperts) * ofExpert + ofDense
  return 4 * (layers * ofLayer + 2 * vocabulary + context) * dim
}

/**
 * Lower bound of the bytes for training: weights, their gradients, the two moments of AdamW, and the tensors that a
 * step saves for its backward.
 */
export function trainingBytes(options: ModelOptions, batch: number): number {
  const { vocabulary, context, dim, layers, sharedExperts = 0 } = options
  const [ofExpert, ofDense] = hiddenSizes(options).map((hidden) => rowsOf(options, hidden))
  const ofLayer = 8 * dim + (expertsPerToken(options) + sharedExperts) * ofExpert + ofDense
  const saved = batch * context * (layers * ofLayer + 2 * vocabulary)
  return 4 * (weightBytes(options) + saved)
}
