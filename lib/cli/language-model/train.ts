import { allOrNone } from '../../autograd/scope.js'
import {
  AdamW,
  type CapturedStep,
  CosineSchedule,
  captureStep,
  clipGradNorm,
  crossEntropy,
  keep,
  type LanguageModel,
  MoeError,
  type RoutingStats,
  type ScheduledOptimizer,
  type Tensor,
  zeros,
} from '../../index.js'
import { mean } from '../numbers.js'
import type { Batch } from './batches.js'
import type { HistoryEntry } from './history.js'

/** A small β₂, which adapts faster in a run of a few minutes. */
export const makeOptimizer = (model: LanguageModel, lr: number): AdamW =>
  new AdamW(model.parameters(), { lr, betas: [0.9, 0.98], weightDecay: 0.1 })

/** Linear warm-up over the first 5 % of the steps, at most 100, then cosine decay to 2 % of the highest rate. */
export const makeSchedule = (optimizer: ScheduledOptimizer, steps: number): CosineSchedule =>
  new CosineSchedule(optimizer, { steps, warmUp: Math.min(100, Math.ceil(steps * 0.05)), minRatio: 0.02 })

/** Training steps on batches of one size. The first is captured, and every one is a replay. */
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
  run({ input, target }: Batch): number {
    this.#step ??= this.#capture([input.length / this.#model.context, this.#model.context])
    for (const [i, tokens] of [input, target].entries()) this.#inputs[i].copyFrom(tokens)
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

/** What the history records of the loss and the routers of a step. */
export const entryOf = (
  loss: number,
  layers: readonly RoutingStats[],
): Pick<HistoryEntry, 'loss' | 'dropped' | 'load'> => ({
  loss,
  dropped: mean(layers.map(({ droppedTokens }) => droppedTokens)),
  load: layers.map(({ firstChoicePerExpert }) => sharesOf(firstChoicePerExpert)),
})

function sharesOf(counts: readonly number[]): number[] {
  const total = counts.reduce((a, b) => a + b, 0)
  return counts.map((count) => count / total)
}
