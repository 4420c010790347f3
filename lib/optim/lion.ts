import { number, type OptionsOf } from '../runtime/options.js'
import { declaredOptimizer, type GroupValues } from './declared.js'
import { decays, withBetas } from './option-kinds.js'

const options = {
  /** Learning rate. Default 1e-4. May be set between steps: `optimizer.lr = …`. */
  lr: number({ min: 0, default: 1e-4 }),
  /** Decay rates of the moment, in the update and in the state, each in [0, 1). Default [0.9, 0.99]. */
  betas: decays({ default: [0.9, 0.99] }),
  /** Each step subtracts lr · weightDecay · parameter. Default 0. */
  weightDecay: number({ min: 0, default: 0 }),
}

/** Options of {@link Lion}. */
export interface LionOptions extends OptionsOf<typeof options> {}

/** Options of a group of {@link Lion}. */
export interface LionValues extends GroupValues<typeof options> {}

/**
 * Lion (Chen et al., arXiv 2302.06675, algorithm 2): p −= lr · (sign(β1 · m + (1 − β1) · g) + weightDecay · p), then
 * m = β2 · m + (1 − β2) · g. Its state is half that of AdamW.
 *
 * @example
 * ```ts
 * const model = new Linear(4, 1)
 * scope(() => model.forward(ones([8, 4])).square().mean().backward())
 * new Lion(model.parameters(), { lr: 1e-4, weightDecay: 0.1 }).step()
 * ```
 */
export class Lion extends declaredOptimizer('Lion', {
  options,
  state: { m: { name: 'exp_avg' } },
  numbers: withBetas,
}) {}
