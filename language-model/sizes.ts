import { expertHiddenSize, isGatedActivation } from '../lib/index.js'
import { expertsPerToken, type LanguageModelShape } from './options.js'

/** P of an expert with its H: rows of its first matrix. */
const rowsOf = ({ activation }: LanguageModelShape, hidden: number): number =>
  isGatedActivation(activation) ? 2 * hidden : hidden

/** H of the experts, and of the dense feed-forward after them. */
function hiddenSizes({ dim, expertHiddenDim }: LanguageModelShape): [number, number] {
  const usual = expertHiddenSize(dim, 4, 'LanguageModel')
  return [expertHiddenDim ?? usual, usual]
}

/**
 * The options that {@link weightBytes} depends on, to name them where a model is too large.
 *
 * @example
 * ```ts
 * const { sizes } = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), dim: 16, layers: 1 })
 * console.log(memoryOptions(sizes)) // → { layers: 1, dim: 16, experts: 8, context: 128 }
 * ```
 */
export const memoryOptions = (sizes: LanguageModelShape): Record<string, number> => {
  const { layers, dim, experts, expertHiddenDim, sharedExperts, context } = sizes
  return {
    layers,
    dim,
    experts,
    ...(expertHiddenDim && { expertHiddenDim }),
    ...(sharedExperts && { sharedExperts }),
    context,
  }
}

/**
 * Lower bound of the bytes of the weights, for V tokens.
 *
 * @example
 * ```ts
 * const { sizes } = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), dim: 16, layers: 1 })
 * console.log(weightBytes(sizes, 3) / 1e3) // → 85.248
 * ```
 */
export function weightBytes(sizes: LanguageModelShape, V: number): number {
  const { context, dim, layers, experts, sharedExperts } = sizes
  const [ofExpert, ofDense] = hiddenSizes(sizes).map((hidden) => rowsOf(sizes, hidden) + hidden)
  const ofLayer = 4 * dim + (experts + sharedExperts) * ofExpert + ofDense
  return 4 * (layers * ofLayer + 2 * V + context) * dim
}

/** Names in the state dict of a model. */
export function weightCount({ layers, experts, sharedExperts, activation }: LanguageModelShape): number {
  const ofExpert = isGatedActivation(activation) ? 5 : 4 // weights and biases of two linear maps; gates have one more
  const shared = sharedExperts > 0 ? 1 : 0 // all in one
  const ofLayer = 10 + (experts + shared + 1) * ofExpert // norms, attention, router; the last is the dense feed-forward
  return layers * ofLayer + 5
}

/** The shape of a weight on which each size depends, by name; layers have the same. V: tokens of the vocabulary. */
export function weightShapes(sizes: LanguageModelShape, V: number): Record<string, readonly number[]> {
  const { context, dim, experts, sharedExperts } = sizes
  const [hidden] = hiddenSizes(sizes)
  const moe = 'layers.0.block.moe.'
  return {
    'tokens.weight': [V, dim],
    positions: [context, dim],
    [`${moe}gate.to_gates.weight`]: [experts, dim],
    [`${moe}experts.experts.0.net.0.weight`]: [rowsOf(sizes, hidden), dim],
    ...(sharedExperts > 0 && { [`${moe}shared_experts.net.0.weight`]: [rowsOf(sizes, hidden * sharedExperts), dim] }),
  }
}

/**
 * Lower bound of the bytes for training: weights, their gradients, the two moments of AdamW, and the tensors that a
 * step saves for its backward. V: tokens of the vocabulary; `batch`: sequences per step.
 *
 * @example
 * ```ts
 * const { sizes } = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), dim: 16, layers: 1 })
 * console.log(trainingBytes(sizes, 3, 8) > 4 * weightBytes(sizes, 3)) // → true
 * ```
 */
export function trainingBytes(sizes: LanguageModelShape, V: number, batch: number): number {
  const { context, dim, layers, sharedExperts } = sizes
  const [ofExpert, ofDense] = hiddenSizes(sizes).map((hidden) => rowsOf(sizes, hidden))
  const ofLayer = 8 * dim + (expertsPerToken(sizes) + sharedExperts) * ofExpert + ofDense
  const saved = batch * context * (layers * ofLayer + 2 * V)
  return 4 * (weightBytes(sizes, V) + saved)
}
