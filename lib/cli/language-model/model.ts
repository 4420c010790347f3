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

/** P and H of an expert: rows of its two matrices. */
function expertRows({ dim, activation = 'geglu' }: ModelOptions): [number, number] {
  const hidden = hiddenSize('st-moe train', dim, 4)
  return [isGated(activation) ? 2 * hidden : hidden, hidden]
}

/** Experts besides the routed ones: the shared ones, and the dense feed-forward after them, which counts as one. */
const denseExperts = ({ sharedExperts = 0 }: ModelOptions): number => sharedExperts + 1

/** Lower bound of the bytes of the weights. */
export function weightBytes(options: ModelOptions): number {
  const { vocabulary, context, dim, layers, experts } = options
  const [rows, hidden] = expertRows(options)
  const perExpert = (rows + hidden) * dim
  return (
    4 * (layers * (4 * dim * dim + (experts + denseExperts(options)) * perExpert) + (2 * vocabulary + context) * dim)
  )
}

/**
 * Lower bound of the bytes for training: weights, their gradients, the two moments of AdamW, and the tensors that a
 * step saves for its backward.
 */
export function trainingBytes(options: ModelOptions, batch: number): number {
  const { vocabulary, context, dim, layers } = options
  const [rows] = expertRows(options)
  const visited = expertsPerToken(options) + denseExperts(options)
  const saved = batch * context * (layers * (8 * dim + visited * rows) + 2 * vocabulary)
  return 4 * (weightBytes(options) + saved)
}
