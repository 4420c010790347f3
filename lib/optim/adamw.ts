import { checkNumber, copyArray, fail } from '../check.js'
import { native } from '../native.js'
import { replayRow } from '../native-ops.js'
import type { Parameter } from '../nn/parameter.js'
import { checkValues, number, type Option, type OptionsOf, reader } from '../options.js'
import type { ReplayRow } from '../recorder.js'
import { handleOf } from '../tensor.js'
import { Optimizer, type OptimizerOptions, type ParameterUpdate, type StateTensors } from './optimizer.js'

/** Two numbers in [0, 1). */
const decays: Option<readonly [number, number]> = {
  default: [0.9, 0.999],
  check(op, name, value) {
    const given = copyArray(op, name, value, 2)
    if (given.length !== 2) fail('OPTION', op, `${name} must be two numbers, got ${given.length}`)
    const [first, second] = given.map((beta, i) => {
      if (checkNumber(op, `${name}[${i}]`, beta, 0) < 1) return beta as number
      return fail('OPTION', op, `${name}[${i}] must be below 1, got ${beta}`)
    })
    return [first, second]
  },
}

const adamwOptions = {
  /** Learning rate. Default 1e-3. May be set between steps: `optimizer.lr = …`. */
  lr: number({ min: 0, default: 1e-3 }),
  /** Decay rates of the first and second moments, each in [0, 1). Default [0.9, 0.999]. */
  betas: decays,
  /** Added to the square root of the second moment. Default 1e-8. */
  eps: number({ min: 0, default: 1e-8 }),
  /** Each step subtracts lr · weightDecay · parameter. Default 1e-2. */
  weightDecay: number({ min: 0, default: 1e-2 }),
}

/** Options of {@link AdamW}. */
export interface AdamWOptions extends OptionsOf<typeof adamwOptions> {}

const readOptions = reader(adamwOptions)

/**
 * Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), the update of
 * torch.optim.AdamW. The state of a parameter is two tensors of its shape, created at its first step.
 *
 * @example
 * ```ts
 * const model = new Linear(4, 1)
 * const optimizer = new AdamW(model.parameters(), { lr: 3e-4 })
 * scope(() => model.forward(ones([8, 4])).square().mean().backward())
 * optimizer.step()
 * optimizer.zeroGrad()
 * ```
 */
export class AdamW extends Optimizer {
  /** Learning rate; may be set between steps, like the other options. */
  lr: number
  /** See {@link AdamWOptions.betas}. */
  betas: readonly [number, number]
  /** See {@link AdamWOptions.eps}. */
  eps: number
  /** See {@link AdamWOptions.weightDecay}. */
  weightDecay: number

  /** Errors: OPTION, DISPOSED. */
  constructor(params: Iterable<Parameter>, options?: AdamWOptions) {
    super('AdamW', params)
    const { lr, betas, eps, weightDecay } = readOptions('AdamW', options)
    this.lr = lr
    this.betas = betas
    this.eps = eps
    this.weightDecay = weightDecay
  }

  protected override checkedOptions(op: string, source: object): OptimizerOptions & Required<AdamWOptions> {
    return checkValues(op, source, adamwOptions)
  }

  protected override stateTensors(): StateTensors {
    return { exp_avg: 'any', exp_avg_sq: 'non-negative' }
  }

  /** @internal */
  protected override replayRow(step: number): ReplayRow {
    const { betas, ...options } = this.checkedOptions('AdamW.step', this)
    return replayRow.adamw({ step, beta1: betas[0], beta2: betas[1], ...options })
  }

  protected update(updates: readonly ParameterUpdate[]): void {
    const { lr, eps, weightDecay } = this
    const [beta1, beta2] = this.betas
    native.adamw(
      updates.map(({ parameter, grad, step, tensors }) => {
        const [m, v] = [handleOf(tensors.exp_avg), handleOf(tensors.exp_avg_sq)]
        return { p: handleOf(parameter), g: handleOf(grad), m, v, step, lr, beta1, beta2, eps, weightDecay }
      }),
    )
  }
}
