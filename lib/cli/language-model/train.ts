import {
  AdamW,
  type CapturedStep,
  captureStep,
  clipGradNorm,
  crossEntropy,
  keep,
  MoeError,
  type RoutingStats,
  type Tensor,
  zeros,
} from '../../index.js'
import { allOrNone } from '../../scope.js'
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

/** Training steps on batches of one size. On a GPU the first is captured, and every one is a replay: one launch. */
export class TrainStep {
  readonly #model: LanguageModel
  readonly #optimizer: AdamW
  #inputs: Tensor<'i32'>[] = []
  #step: CapturedStep<{ loss: Tensor; norm: Tensor }> | null = null

  /** Both stay the caller's. */
  constructor(model: LanguageModel, optimizer: AdamW) {
    this.#model = model
    this.#optimizer = optimizer
  }

  /** One step; returns its loss. Errors: NON_FINITE if the gradients were not finite. */
  run({ input, target }: Batch, lr: number): number {
    this.#step ??= this.#capture([input.length / this.#model.context, this.#model.context])
    for (const [i, characters] of [input, target].entries()) this.#inputs[i].copyFrom(characters)
    this.#optimizer.lr = lr
    const { loss, norm } = this.#step.replay()
    const before = norm.item()
    if (!Number.isFinite(before))
      throw new MoeError('NON_FINITE', 'clipGradNorm', `the gradient norm must be finite, got ${before}`)
    return loss.item()
  }

  #capture(shape: readonly number[]): CapturedStep<{ loss: Tensor; norm: Tensor }> {
    this.#inputs = allOrNone(() => [0, 1].map(() => keep(zeros(shape, { dtype: 'i32' }))))
    const [input, target] = this.#inputs
    return captureStep(() => {
      const { logits, routed } = this.#model.forward(input)
      const loss = crossEntropy(logits, target)
      routed.reduce((sum, { totalAuxLoss }) => sum.add(totalAuxLoss), loss).backward()
      const norm = clipGradNorm(this.#model.parameters(), 1, { wait: false })
      this.#optimizer.step()
      this.#optimizer.zeroGrad()
      return { loss, norm }
    })
  }

  [Symbol.dispose](): void {
    this.#step?.dispose()
    for (const input of this.#inputs) input.dispose()
  }
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
