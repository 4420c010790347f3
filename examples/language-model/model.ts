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
} from 'st-moe'

export interface ModelOptions {
  vocabulary: number
  context: number
  width: number
  layers: number
  heads: number
  experts: number
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
function sinusoids(context: number, width: number, deviation: number): Parameter {
  const values = Float32Array.from({ length: context * width }, (_, i) => {
    const [position, channel] = [Math.floor(i / width), i % width]
    const angle = position * context ** (-Math.floor(channel / 2) / (width / 2))
    return Math.SQRT2 * deviation * (channel % 2 === 0 ? Math.sin(angle) : Math.cos(angle))
  })
  using table = tensor(values, [context, width])
  return new Parameter(table)
}

/** x += attention(norm(x)); x += experts(norm(x)). */
class Layer extends Module {
  norm: RMSNorm
  attention: CausalSelfAttention
  block: SparseMoEBlock

  constructor({ width, heads, experts, layers }: ModelOptions) {
    super()
    this.norm = new RMSNorm(width)
    this.attention = new CausalSelfAttention(width, { heads })
    // What a layer adds starts small, so that the sum over layers does not grow with their number.
    this.attention.out.weight.dispose()
    this.attention.out.weight = normal([width, width], 1 / Math.sqrt(2 * layers * width))
    const moe = new MoE({
      dim: width,
      numExperts: experts,
      // Two choices a token need twice the places of one.
      capacityFactorTrain: 2,
      // With C = N nothing is dropped, and no token's route depends on tokens behind it; nor on chance.
      capacityFactorEval: experts,
      thresholdEval: 0,
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
    const { vocabulary, context, width, layers } = options
    this.context = context
    this.tokens = new Embedding(vocabulary, width)
    this.tokens.weight.dispose()
    this.tokens.weight = normal([vocabulary, width], 0.1)
    this.positions = sinusoids(context, width, 0.1)
    this.layers = Array.from({ length: layers }, () => new Layer(options))
    this.norm = new RMSNorm(width)
    this.head = new Linear(width, vocabulary)
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
