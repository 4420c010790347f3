import {
  allOrNone,
  arange,
  CausalSelfAttention,
  Embedding,
  type Experts,
  embedding,
  Linear,
  Module,
  MoE,
  type MoEResult,
  type ops,
  Parameter,
  type ProcessGroup,
  RMSNorm,
  randn,
  SparseMoEBlock,
  type Tensor,
  tensor,
  utils,
} from '../lib/index.js'
import { type GenerateOptions, generated } from './generate.js'
import {
  type LanguageModelOptions,
  type LanguageModelShape,
  type LanguageModelSizes,
  layerOptions,
  readModelOptions,
  readModelSizes,
} from './options.js'
import type { Tokenizer } from './tokenizer.js'

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
  const values = utils.allocated('LanguageModel', `${context} positions`, () => new Float32Array(context * dim))
  for (const i of values.keys()) {
    const [position, channel] = [Math.floor(i / dim), i % dim]
    const angle = position * context ** (-Math.floor(channel / 2) / (dim / 2))
    values[i] = Math.SQRT2 * deviation * (channel % 2 === 0 ? Math.sin(angle) : Math.cos(angle))
  }
  using table = tensor(values, [context, dim])
  return new Parameter(table)
}

/**
 * A layer of a {@link LanguageModel}: x += attention(norm(x)); x += experts(norm(x)).
 *
 * @example
 * ```ts
 * const { layers } = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), context: 8, dim: 16, layers: 2 })
 * console.log(layers.length, layers[0].forward(randn([1, 8, 16])).outputs.shape) // → 2 [ 1, 8, 16 ]
 * ```
 */
export class LanguageModelLayer extends Module {
  /** Before attention. */
  norm: RMSNorm
  /** With a residual. */
  attention: CausalSelfAttention
  /** The experts, and a dense feed-forward after them. */
  block: SparseMoEBlock

  constructor(options: LanguageModelShape, processGroup?: ProcessGroup) {
    super()
    const { dim, heads, layers, computeDtype } = options
    this.norm = new RMSNorm(dim)
    this.attention = new CausalSelfAttention(dim, { heads, computeDtype })
    // Small initial outputs, so that the residual stream does not grow with the number of layers.
    this.attention.out.weight.dispose()
    this.attention.out.weight = normal([dim, dim], 1 / Math.sqrt(2 * layers * dim))
    this.block = new SparseMoEBlock(new MoE({ ...layerOptions(options), processGroup }))
  }

  /** x [B, N, D]; with a cache its next tokens. */
  forward(x: Tensor, cache: (ops.AttentionCache & ops.CachePlace) | null = null): MoEResult {
    const attended = this.attention.forward(this.norm.forward(x), { cache }).add(x)
    return this.block.forward(attended)
  }
}

/** What {@link LanguageModel.forward} returns. */
export interface LanguageModelResult {
  /** [B, N, V], of the next tokens. */
  logits: Tensor
  /** Of the experts of each layer, with the losses to add in training. */
  routed: MoEResult[]
}

/**
 * A small transformer with a mixture of experts in every layer, as `st-moe train` trains it: tokens i32 [B, N] → logits
 * [B, N, V] of the next ones. In evaluation the experts of a token depend on that token's own state alone: nothing is
 * dropped, and nothing is random.
 *
 * @example
 * ```ts
 * const text = 'a rose is a rose is a rose '.repeat(20)
 * const tokenizer = CharacterTokenizer.of(text)
 * const model = new LanguageModel({ tokenizer, context: 16, dim: 32, layers: 1, experts: 4 })
 * const all = tokenizer.encode(text)
 * const [input, target] = [0, 1].map((from) => tensor(all.slice(from, from + 16), [1, 16]))
 * const { logits, routed } = model.forward(input)
 * crossEntropy(logits, target).add(routed[0].totalAuxLoss).backward()
 * console.log(logits.shape) // → [ 1, 16, 7 ]
 * ```
 */
export class LanguageModel extends Module {
  /** How text becomes tokens. */
  readonly tokenizer: Tokenizer
  /** The options without the tokenizer, and their defaults. */
  readonly sizes: Readonly<LanguageModelShape>
  /** Of tokens, [V, D]. */
  tokens: Embedding
  /** Of positions, [context, D]. */
  positions: Parameter
  /** Attention and experts, each a residual block. */
  layers: LanguageModelLayer[]
  /** Before the head. */
  norm: RMSNorm
  /** D → V. */
  head: Linear

  /** Checks options, without a model and a tokenizer, and returns them with their defaults. Errors: OPTION. */
  static checkOptions(options: LanguageModelSizes): LanguageModelShape {
    return readModelSizes('LanguageModel', options)
  }

  /** Errors: OPTION, OUT_OF_MEMORY. */
  constructor(options: LanguageModelOptions) {
    super()
    const { sizes, tokenizer, processGroup } = readModelOptions('LanguageModel', options)
    const { context, dim, layers, computeDtype } = sizes
    this.tokenizer = tokenizer
    this.sizes = Object.freeze(sizes)
    const V = tokenizer.size
    ;[this.tokens, this.positions, this.layers, this.norm, this.head] = allOrNone(() => {
      const tokens = new Embedding(V, dim)
      tokens.weight.dispose()
      tokens.weight = normal([V, dim], 0.1)
      return [
        tokens,
        sinusoids(context, dim, 0.1),
        Array.from({ length: layers }, () => new LanguageModelLayer(sizes, processGroup)),
        new RMSNorm(dim),
        new Linear(dim, V, { computeDtype }),
      ]
    })
  }

  /** Tokens that the model sees at once. */
  get context(): number {
    return this.sizes.context
  }

  /** The numbers in all parameters, also of the experts that other ranks have. */
  get parameterCount(): number {
    const sizeOf = (module: Module): number => module.parameters().reduce((sum, { size }) => sum + size, 0)
    const elsewhere = ({ block: { moe } }: LanguageModelLayer): number => {
      const count = (moe.experts as Experts).w1.shape[0]
      return sizeOf(moe.experts) * (moe.numExperts / count - 1)
    }
    return this.layers.reduce((sum, layer) => sum + elsewhere(layer), sizeOf(this))
  }

  /** Tokens i32 [B, N], N from 1 to `context`. Errors: SHAPE, DTYPE, DEVICE, OPTION for a token outside the vocabulary. */
  forward(tokens: Tensor): LanguageModelResult {
    const op = 'LanguageModel.forward'
    const { shape } = utils.checkTensor(op, 'tokens', tokens)
    const N = shape[1] ?? 0
    if (shape.length !== 2 || N < 1 || N > this.context)
      utils.fail('SHAPE', op, `tokens must be [B, N] with N from 1 to ${this.context}, got ${utils.showShape(shape)}`)
    let x = this.tokens.forward(tokens).add(this.#firstPositions(N))
    const routed: MoEResult[] = []
    for (const layer of this.layers) {
      const result = layer.forward(x)
      routed.push(result)
      x = result.outputs
    }
    return { logits: this.head.forward(this.norm.forward(x)), routed }
  }

  /**
   * The logits [B, V] after tokens [B, N]; with caches of the layers after those and the tokens that the caches have.
   * What `generate` calls.
   */
  predict(tokens: Tensor, caches?: readonly ops.AttentionCache[], place?: ops.CachePlace): Tensor {
    const N = tokens.shape[1]
    let x = this.tokens.forward(tokens).add(place ? this.#positionsAt(place.position, N) : this.#firstPositions(N))
    for (const [i, layer] of this.layers.entries())
      x = layer.forward(x, caches && place ? { ...caches[i], ...place } : null).outputs
    const last = N === 1 ? x : x.slice(1, N - 1)
    return this.head.forward(this.norm.forward(last))
  }

  /** [N, D] */
  #firstPositions(N: number): Tensor {
    return N < this.context ? this.positions.slice(0, 0, N) : this.positions
  }

  /** [B, N, D], from `position` i32 [B] on. */
  #positionsAt(position: Tensor, N: number): Tensor {
    const each = N === 1 ? position : position.reshape([position.size, 1]).add(arange(N))
    return embedding(this.positions, each.reshape([position.size, N]))
  }

  /**
   * Continues a text, piece by piece; of several prompts at once each piece is an array, '' for a text that has ended.
   * The model is in evaluation mode meanwhile, and the random numbers of others do not advance. Prompt i of several has
   * the text that it has alone with `seed` + i, up to the rounding of GEMMs of other sizes.
   *
   * The model sees a window of at most `context` tokens: first the end of the prompt; when it is full, it begins again
   * with its last half. Keys and values of the window are cached, so a token costs a forward of one token.
   *
   * Errors: OPTION; the reason of `signal` if that aborts.
   *
   * @example
   * ```ts
   * const model = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), context: 8, dim: 16, layers: 1 })
   * let text = ''
   * for await (const piece of model.generate('ab', { maxTokens: 20, seed: 3 })) text += piece
   * console.log(text.length) // → 20
   * ```
   */
  generate(prompt: string, options?: GenerateOptions): AsyncGenerator<string, void, undefined>
  generate(prompts: readonly string[], options?: GenerateOptions): AsyncGenerator<string[], void, undefined>
  generate(
    prompt: string | readonly string[],
    options?: GenerateOptions,
  ): AsyncGenerator<string | string[], void, undefined> {
    const op = 'LanguageModel.generate'
    return typeof prompt === 'string'
      ? single(generated(op, this, [prompt], options))
      : generated(op, this, prompt, options)
  }
}

async function* single(pieces: AsyncGenerator<string[], void, undefined>): AsyncGenerator<string, void, undefined> {
  for await (const [piece] of pieces) if (piece !== '') yield piece
}
