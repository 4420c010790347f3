import { AdamW, clipGradNorm, crossEntropy, type RoutingStats, scope, tensor } from '../../index.js'
import type { Batch } from './batches.js'
import { type HistoryEntry, mean } from './history.js'
import type { LanguageModel } from './model.js'

/** A small β₂, which adapts faster in a run of a few minutes. */
export const makeOptimizer = (model: LanguageModel): AdamW =>
  new AdamW(model.parameters(), { betas: [0.9, 0.98], weightDecay: 0.1 })

/** Linear warm-up over the first 5 % of the steps, at most 100, then cosine decay to 2 % of the highest rate. */
export function learningRate(step: number, steps: number, highest: number): number {
  const warmUp = Math.min(100, Math.ceil(steps * 0.05))
  if (step < warmUp) return (highest * (step + 1)) / warmUp
  const progress = (step - warmUp) / Math.max(1, steps - warmUp)
  return highest * (0.02 + 0.98 * 0.5 * (1 + Math.cos(Math.PI * progress)))
}

/** One training step; returns its loss. The scope frees its tensors. */
export function trainStep(model: LanguageModel, optimizer: AdamW, { input, target }: Batch, lr: number): number {
  return scope(() => {
    const shape = [input.length / model.context, model.context]
    const { logits, routed } = model.forward(tensor(input, shape))
    const loss = crossEntropy(logits, tensor(target, shape))
    routed.reduce((sum, { totalAuxLoss }) => sum.add(totalAuxLoss), loss).backward()
    clipGradNorm(model.parameters(), 1, { onNonFinite: 'throw' })
    optimizer.lr = lr
    optimizer.step()
    optimizer.zeroGrad()
    return loss.item()
  })
}

/** The record of a step in the history. */
export const entryOf = (loss: number, layers: readonly RoutingStats[]): HistoryEntry => ({
  loss,
  dropped: mean(layers.map(({ droppedTokens }) => droppedTokens)),
  load: layers.map(({ firstChoicePerExpert }) => sharesOf(firstChoicePerExpert)),
})

function sharesOf(counts: readonly number[]): number[] {
  const total = counts.reduce((a, b) => a + b, 0)
  return counts.map((count) => count / total)
}
