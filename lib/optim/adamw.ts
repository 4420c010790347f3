import { number, type OptionsOf } from '../runtime/options.js'
import { declaredOptimizer, type GroupValues } from './declared.js'
import { decays, withBetas } from './option-kinds.js'

const options = {
  /** Learning rate. Default 1e-3. May be set between steps: `optimizer.lr = …`. */
  lr: number({ min: 0, default: 1e-3 }),
  /** Decay rates of the first and second moments, each in [0, 1). Default [0.9, 0.999]. */
  betas: decays({ default: [0.9, 0.999] }),
  /** Added to the square root of the second moment. Default 1e-8. */
  eps: number({ min: 0, default: 1e-8 }),
  /** Each step subtracts lr · weightDecay · parameter. Default 1e-2. */
  weightDecay: number({ min: 0, default: 1e-2 }),
}

/** Options of {@link AdamW}. */
export interface AdamWOptions extends OptionsOf<typeof options> {}

/** Options of a group of {@link AdamW}. */
export interface AdamWValues extends GroupValues<typeof options> {}

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
export class AdamW extends declaredOptimizer('AdamW', {
  options,
  state: { m: { name: 'exp_avg' }, v: { name: 'exp_avg_sq', values: 'non-negative' } },
  numbers: withBetas,
}) {}
