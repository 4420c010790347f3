import { expertHiddenSize } from '../../lib/index.js'

/** A layer that is measured: all experts and all tokens together, which the ranks share out. */
export interface Shape {
  name: string
  dim: number
  hidden: number
  experts: number
  sequences: number
  tokens: number
}

/** The hidden size that MoE chooses. */
export const usualHidden = (dim: number): number => expertHiddenSize(dim, 4, 'scale')

/** Slots of all experts for all sequences: a capacity factor of 1.25, as MoE has by default. */
export const slots = ({ experts, sequences, tokens }: Shape): number =>
  experts * sequences * Math.max(4, Math.min(tokens, Math.trunc((tokens * 1.25) / experts)))

const shape = (dim: number, experts: number, sequences: number, tokens: number): Shape => {
  const name = `dim ${dim}, ${experts} experts, ${sequences} × ${tokens} tokens`
  return { name, dim, hidden: usualHidden(dim), experts, sequences, tokens }
}

/** The model is fitted to these two; the second is the layer of the README. */
export const fitted: readonly Shape[] = [shape(256, 16, 4, 1024), shape(512, 16, 4, 1024)]

/** What the model predicts: wider than both, with fewer experts and shorter sequences. */
export const predicted: Shape = shape(768, 8, 4, 512)

/** Bytes that a rank passes to an all-to-all, and of the tensor of an all-reduce. */
export const exchangeBytes: readonly number[] = [2 ** 12, 2 ** 16, 2 ** 20, 2 ** 22, 2 ** 24]
