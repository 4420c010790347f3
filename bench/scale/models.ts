import { usual, usualModel } from '../demo.js'
import { usualHidden } from './shapes.js'

/** The sizes of a language model, per layer, and of its training. */
export interface Model {
  name: string
  source: string
  layers: number
  /** Of these, layers with a dense feed-forward instead of experts. */
  denseLayers: number
  dim: number
  /** Parameters of attention in a layer, and heads × size of a head, in which its scores are computed. */
  attention: number
  scores: number
  experts: number
  topK: number
  hidden: number
  /** Hidden size of what every token visits beside the experts; of the feed-forward of dense layers. */
  shared: number
  dense: number
  vocab: number
  context: number
  /** Rows that experts compute per token: topK, or the capacity factor. */
  rows: number
  /** Nodes that the experts of a token may be on. Default: all. */
  topNodes?: number
  /** Sequences per step. */
  batch: number
  /** Whether GEMMs have bf16 operands. */
  low: boolean
}

/** Attention with fewer key/value heads: queries and outputs D × D, keys and values D × kv. */
const grouped = (dim: number, heads: number, kv: number): number => 2 * dim * dim + 2 * dim * ((dim / heads) * kv)

/** Multi-head latent attention (arXiv 2412.19437, §2.1.1 and §4.2): 128 heads of 128 + 64, ranks 1536 and 512. */
const latent = (dim: number): number => {
  const [heads, size, rotary, queries, values] = [128, 128, 64, 1536, 512]
  const ofQueries = dim * queries + queries * heads * (size + rotary)
  const ofValues = dim * (values + rotary) + values * heads * 2 * size
  return ofQueries + ofValues + heads * size * dim
}

/** Characters of the text of the demo, each a token. */
export const demoVocab = 83

const demoSizes = usualModel as { layers: number; dim: number; experts: number; topN: number; context: number }

export const demo: Model = {
  ...{ name: 'the demo', source: '`npm run demo`: the defaults of `st-moe train`', denseLayers: 0, dense: 0 },
  ...{ layers: demoSizes.layers, dim: demoSizes.dim, experts: demoSizes.experts, topK: demoSizes.topN },
  ...{ attention: 4 * demoSizes.dim ** 2, scores: demoSizes.dim, hidden: usualHidden(demoSizes.dim) },
  ...{ shared: usualHidden(demoSizes.dim), vocab: demoVocab, context: demoSizes.context, rows: 1.25 },
  ...{ batch: usual.batch, low: false },
}

export const mixtral: Model = {
  ...{ name: 'Mixtral 8×22B', source: 'config.json of mistralai/Mixtral-8x22B-v0.1' },
  ...{ layers: 56, denseLayers: 0, dim: 6144, attention: grouped(6144, 48, 8), scores: 6144 },
  ...{ experts: 8, topK: 2, hidden: 16384, shared: 0, dense: 0, vocab: 32768, context: 4096 },
  ...{ rows: 2, batch: 1024, low: true },
}

export const deepSeek: Model = {
  ...{ name: 'DeepSeek-V3', source: 'arXiv 2412.19437, §4.2' },
  ...{ layers: 61, denseLayers: 3, dim: 7168, attention: latent(7168), scores: 128 * 160 },
  ...{ experts: 256, topK: 8, hidden: 2048, shared: 2048, dense: 18432, vocab: 129280, context: 4096 },
  ...{ rows: 8, topNodes: 4, batch: 15360, low: true },
}

/** For a published figure only. */
export const qwen: Model = {
  ...{ name: 'Qwen2-57B-A14B', source: 'config.json of Qwen/Qwen2-57B-A14B' },
  ...{ layers: 28, denseLayers: 0, dim: 3584, attention: grouped(3584, 28, 4), scores: 3584 },
  ...{ experts: 64, topK: 8, hidden: 2560, shared: 20480, dense: 0, vocab: 151936, context: 4096 },
  ...{ rows: 8, batch: 256, low: true },
}

export const models: readonly Model[] = [demo, mixtral, deepSeek]

/** Weights of a gated feed-forward. */
const gated = (dim: number, hidden: number): number => 3 * dim * hidden

/** Parameters of all experts, and of all else. Biases and norms, less than 1 %, are left out. */
export function parametersOf(model: Model): { experts: number; others: number } {
  const { layers, denseLayers, dim, attention, experts, hidden, shared, dense, vocab } = model
  const sparse = layers - denseLayers
  return {
    experts: sparse * experts * gated(dim, hidden),
    others:
      layers * attention +
      sparse * (gated(dim, shared) + dim * experts) +
      denseLayers * gated(dim, dense) +
      2 * vocab * dim,
  }
}

export const total = (model: Model): number => {
  const { experts, others } = parametersOf(model)
  return experts + others
}

/** Parameters that a token meets. */
export const active = (model: Model): number => {
  const { experts, others } = parametersOf(model)
  return others + (experts / model.experts) * model.topK
}

/**
 * FLOP of a token, forward and backward, in GEMMs: 6 per weight that it meets, except embeddings, which are read, and causal
 * scores and sums of attention. `rows` counts rows that experts compute, or topK for the FLOP that a model needs.
 */
export function tokenFlops(model: Model, rows = model.rows): number {
  const { experts, others } = parametersOf(model)
  const weights = others - model.vocab * model.dim + (experts / model.experts) * rows
  return 6 * weights + 6 * model.layers * model.context * model.scores
}
