import { hiddenSize } from '../nn/experts.js'
import { isGated } from '../ops/activation.js'
import { expertsPerToken, type Sizes } from './options.js'

/** P of an expert with its H: rows of its first matrix. */
const rowsOf = ({ activation }: Sizes, hidden: number): number => (isGated(activation) ? 2 * hidden : hidden)

/** H of the experts, and of the dense feed-forward after them. */
function hiddenSizes({ dim, expertHiddenDim }: Sizes): [number, number] {
  const usual = hiddenSize('LanguageModel', dim, 4)
  return [expertHiddenDim ?? usual, usual]
}

/** The options that the bytes below depend on. */
export const sizesOf = (sizes: Sizes): Record<string, number> => {
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

/** Lower bound of the bytes of the weights, for V tokens. */
export function weightBytes(sizes: Sizes, V: number): number {
  const { context, dim, layers, experts, sharedExperts } = sizes
  const [ofExpert, ofDense] = hiddenSizes(sizes).map((hidden) => rowsOf(sizes, hidden) + hidden)
  const ofLayer = 4 * dim + (experts + sharedExperts) * ofExpert + ofDense
  return 4 * (layers * ofLayer + 2 * V + context) * dim
}

/**
 * Lower bound of the bytes for training: weights, their gradients, the two moments of AdamW, and the tensors that a
 * step saves for its backward.
 */
export function trainingBytes(sizes: Sizes, V: number, batch: number): number {
  const { context, dim, layers, sharedExperts } = sizes
  const [ofExpert, ofDense] = hiddenSizes(sizes).map((hidden) => rowsOf(sizes, hidden))
  const ofLayer = 8 * dim + (expertsPerToken(sizes) + sharedExperts) * ofExpert + ofDense
  const saved = batch * context * (layers * ofLayer + 2 * V)
  return 4 * (weightBytes(sizes, V) + saved)
}
