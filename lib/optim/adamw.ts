import { checkNumber, copyArray, fail } from '../runtime/check.js'
import { native } from '../runtime/native.js'
import { type ReplayRow, replayRow } from '../runtime/native-ops.js'
import { checkValues, number, type Option, type OptionsOf, reader } from '../runtime/options.js'
import { handleOf } from '../tensor/tensor.js'
import type { OptimizerParameters } from './groups.js'
import { Optimizer, type ParameterUpdate } from './optimizer.js'
import type { StateTensors } from './state.js'

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

/** Options of a group of {@link AdamW}. */
export interface AdamWValues extends Required<AdamWOptions> {}

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
export class AdamW extends Optimizer<AdamWValues> {
  /** Learning rate; may be set between steps, like the other options. See {@link Optimizer} for several groups. */
  declare lr: number
  /** See {@link AdamWOptions.betas}. */
  declare betas: readonly [number, number]
  /** See {@link AdamWOptions.eps}. */
  declare eps: number
  /** See {@link AdamWOptions.weightDecay}. */
  declare weightDecay: number

  /** Parameters, or groups of them with options of their own. Errors: OPTION, DISPOSED. */
  constructor(params: OptimizerParameters<AdamWOptions>, options?: AdamWOptions) {
    super('AdamW', params, readOptions('AdamW', options))
  }

  protected override checkedOptions(op: string, source: object, prefix: string): AdamWValues {
    return checkValues(op, source, adamwOptions, prefix)
  }

  protected override stateTensors(): StateTensors {
    return { exp_avg: 'any', exp_avg_sq: 'non-negative' }
  }

  /** @internal */
  protected override replayRow(step: number, { betas, ...options }: AdamWValues): ReplayRow {
    return replayRow.adamw({ step, beta1: betas[0], beta2: betas[1], ...options })
  }

  protected override update(updates: readonly ParameterUpdate<AdamWValues>[]): void {
    native.adamw(
      updates.map(({ parameter, grad, step, tensors, options: { betas, lr, eps, weightDecay } }) => {
        const [m, v] = [handleOf(tensors.exp_avg), handleOf(tensors.exp_avg_sq)]
        const [beta1, beta2] = betas
        return { p: handleOf(parameter), g: handleOf(grad), m, v, step, lr, beta1, beta2, eps, weightDecay }
      }),
    )
  }
}
