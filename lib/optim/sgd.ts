import { number, type OptionsOf } from '../runtime/options.js'
import { declaredOptimizer, type GroupValues } from './declared.js'
import { readOnly } from './option-kinds.js'

const options = {
  /** Learning rate. Default 1e-3. May be set between steps: `optimizer.lr = …`. */
  lr: number({ min: 0, default: 1e-3 }),
  /** Factor of the momentum buffer. Default 0: no buffers. Only read: it decides the state. */
  momentum: readOnly(number({ min: 0, default: 0 })),
  /** Adds weightDecay · parameter to the gradient. Default 0. */
  weightDecay: number({ min: 0, default: 0 }),
}

/** Options of {@link SGD}. */
export interface SGDOptions extends OptionsOf<typeof options> {}

/** Options of a group of {@link SGD}. */
export interface SGDValues extends GroupValues<typeof options> {}

/**
 * Stochastic gradient descent, the update of torch.optim.SGD without dampening: g += weightDecay · p;
 * m = momentum · m + g; p −= lr · m.
 *
 * @example
 * ```ts
 * const model = new Linear(2, 1, { bias: false })
 * const before = model.weight.clone()
 * model.forward(ones([1, 2])).sum().backward() // the gradient is 1
 * new SGD(model.parameters(), { lr: 0.5 }).step()
 * console.log(before.sub(model.weight).sum().item().toFixed(3)) // → 1.000
 * ```
 */
export class SGD extends declaredOptimizer('SGD', {
  options,
  state: { buffer: { name: 'momentum_buffer', when: ({ momentum }) => momentum > 0 } },
  numbers: (values) => values,
}) {}
