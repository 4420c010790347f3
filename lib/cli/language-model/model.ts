import {
  CausalSelfAttention,
  type ComputeDType,
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
import { hiddenWidth } from '../../nn/experts.js'

export interface ModelOptions {
  vocabulary: number
  context: number
  dim: number
  layers: number
  heads: number
  experts: number
  topN: number
  computeDtype: ComputeDType
}

/** A weight [out, in] that starts normal with a standard deviation. */
function normal(shape: readonly number[], deviation: number): Parameter {
  using unit = randn(shape)
  using values = unit.mul(deviation)
  return new Parameter(values)
}

/**
 * Positions [N, D] as sines and cosines with periods from 2π to 2π N (Vaswani et al., arXiv 1706.03762, §3.5; theirs go
 * further). A start from which looking one character back is quickly learned; trained like all others.
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

  constructor({ dim, heads, experts, topN, layers, computeDtype }: ModelOptions) {
    super()
    this.norm = new RMSNorm(dim)
    this.attention = new CausalSelfAttention(dim, { heads, computeDtype })
    // What a layer adds starts small, so that the sum over layers does not grow with their number.
    this.attention.out.weight.dispose()
    this.attention.out.weight = normal([dim, dim], 1 / Math.sqrt(2 * layers * dim))
    const moe = new MoE({
      dim,
      numExperts: experts,
      gatingTopN: topN,
      // Two choices a token need twice the places of one.
      capacityFactorTrain: topN,
      // With C = N nothing is dropped, and no token's route depends on tokens behind it; nor on chance.
      capacityFactorEval: experts,
      thresholdEval: 0,
      computeDtype,
    })
    this.block = new SparseMoEBlock(moe)
  }

  forward(x: Tensor): MoEResult {
    const attended = this.attention.forward(this.norm.forward(x)).add(x)
    return this.block.forward(attended, { stats: this.training })
  }
}

/** A transformer with a mixture of experts in every layer: i32 characters [B, N] → logits [B, N, V] of the next ones. */
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

/** Bytes of the weights at least. The dense feed-forward behind the experts counts as one of them. */
export function weightBytes({ vocabulary, context, dim, layers, experts }: ModelOptions): number {
  const hidden = hiddenWidth('st-moe train', dim, 4)
  return 4 * (layers * (4 * dim * dim + (experts + 1) * 3 * hidden * dim) + (2 * vocabulary + context) * dim)
}

/**
 * Bytes that training takes at least: weights, their gradients and the two moments of AdamW, and what a step keeps for
 * its backward.
 */
export function trainingBytes(options: ModelOptions, batch: number): number {
  const { vocabulary, context, dim, layers, topN } = options
  const hidden = hiddenWidth('st-moe train', dim, 4)
  const kept = batch * context * (layers * (8 * dim + (topN + 1) * 2 * hidden) + 2 * vocabulary)
  return 4 * (weightBytes(options) + kept)
}
