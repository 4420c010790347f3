import {
  AdamW,
  allOrNone,
  type CapturedStep,
  CosineSchedule,
  captureStep,
  clipGradNorm,
  crossEntropy,
  type DataParallel,
  keep,
  MoeError,
  noGrad,
  ops,
  type ProcessGroup,
  type ScheduledOptimizer,
  type Tensor,
  utils,
  zeros,
} from '../lib/index.js'
import type { Batch } from './batches.js'
import type { LanguageModel } from './model.js'

/**
 * The optimizer of `st-moe train`: AdamW with weight decay 0.1 and β₂ = 0.98, which adapts faster in a run of a few
 * minutes than 0.999.
 *
 * @example
 * ```ts
 * const model = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), context: 8, dim: 16, layers: 1 })
 * console.log(makeOptimizer(model, 4e-3).betas) // → [ 0.9, 0.98 ]
 * ```
 */
export const makeOptimizer = (model: LanguageModel, lr: number): AdamW =>
  new AdamW(model.parameters(), { lr, betas: [0.9, 0.98], weightDecay: 0.1 })

/**
 * The schedule of `st-moe train`: linear warm-up over the first 5 % of the steps, at most 100, then cosine decay to 2 % of
 * the highest rate.
 *
 * @example
 * ```ts
 * const model = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), context: 8, dim: 16, layers: 1 })
 * const optimizer = makeOptimizer(model, 4e-3)
 * const schedule = makeSchedule(optimizer, 2000)
 * schedule.moveTo(99)
 * console.log(optimizer.lr) // → 0.004
 * ```
 */
export const makeSchedule = (optimizer: ScheduledOptimizer, steps: number): CosineSchedule =>
  new CosineSchedule(optimizer, { steps, warmUp: Math.min(100, Math.ceil(steps * 0.05)), minRatio: 0.02 })

/**
 * Training steps of a {@link LanguageModel} on batches of one size, as `st-moe train` takes them: cross entropy and the
 * losses of the routers, gradients clipped to a norm of 1, a step of the optimizer. The first is captured, and every one
 * is a replay ({@link captureStep}).
 *
 * @example
 * ```ts
 * const text = 'a rose is a rose is a rose '.repeat(20)
 * const tokenizer = CharacterTokenizer.of(text)
 * const model = new LanguageModel({ tokenizer, context: 16, dim: 32, layers: 1, experts: 4 })
 * const batches = new Batches(tokenizer.encode(text), { seed: 1, context: 16, batch: 2 })
 * using step = new TrainStep(model, makeOptimizer(model, 4e-3))
 * const losses = Array.from({ length: 20 }, (_, i) => step.run(batches.at(i)))
 * console.log(losses[19] < losses[0]) // → true
 * ```
 */
export class TrainStep {
  readonly #model: LanguageModel
  readonly #optimizer: AdamW
  readonly #parallel: DataParallel | null
  #inputs: Tensor<'i32'>[] = []
  #step: CapturedStep<Tensor<'f64'>> | null = null

  /**
   * All stay the caller's, who disposes them. With `parallel`, made of this model, the ranks of its group take a step together,
   * each on its part of the batch.
   */
  constructor(model: LanguageModel, optimizer: AdamW, parallel: DataParallel | null = null) {
    this.#model = model
    this.#optimizer = optimizer
    this.#parallel = parallel
  }

  /**
   * One step on a batch, of which ranks that train together all pass the whole; returns its loss in nats per token. Errors:
   * OPTION for a batch that the ranks cannot divide; NON_FINITE if the gradients were not finite.
   */
  run(batch: Batch): number {
    const { rank, size } = this.#parallel?.group ?? { rank: 0, size: 1 }
    const { context } = this.#model
    const sequences = batch.input.length / context / size
    if (!Number.isInteger(sequences))
      utils.fail('OPTION', 'TrainStep.run', `${size} ranks must divide the ${batch.input.length / context} sequences`)
    this.#step ??= this.#capture([sequences, context])
    const own = (tokens: Int32Array) => tokens.subarray(rank * sequences * context, (rank + 1) * sequences * context)
    for (const [i, tokens] of [batch.input, batch.target].entries()) this.#inputs[i].copyFrom(own(tokens))
    const [loss, norm] = this.#step.replay().dataSync()
    if (!Number.isFinite(norm))
      throw new MoeError('NON_FINITE', 'clipGradNorm', `the gradient norm must be finite, got ${norm}`)
    return loss
  }

  /** Its result is the loss and the norm of the gradients, in one tensor: a GPU is waited for once. */
  #capture(shape: readonly number[]): CapturedStep<Tensor<'f64'>> {
    this.#inputs = allOrNone(() => [0, 1].map(() => keep(zeros(shape, { dtype: 'i32' }))))
    const [input, target] = this.#inputs
    const parallel = this.#parallel
    const forward = () => this.#model.forward(input)
    return captureStep(() => {
      const { logits, routed } = parallel ? parallel.asOneBatch(forward) : forward()
      const loss = crossEntropy(logits, target)
      routed.reduce((sum, { totalAuxLoss }) => sum.add(totalAuxLoss), loss).backward()
      const norm = parallel ? parallel.clipGradNorm(1) : clipGradNorm(this.#model.parameters(), 1, { wait: false })
      this.#optimizer.step()
      this.#optimizer.zeroGrad()
      return noGrad(() => ops.stack([parallel ? meanOf(loss.to('f64'), parallel.group) : loss.to('f64'), norm]))
    })
  }

  /** Frees the captured step. */
  [Symbol.dispose](): void {
    this.#step?.dispose()
    for (const input of this.#inputs) input.dispose()
  }
}

/** Over the ranks. */
const meanOf = (x: Tensor<'f64'>, group: ProcessGroup): Tensor<'f64'> => ops.allReduce(x, group).mul(1 / group.size)
