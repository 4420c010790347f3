import { native } from '../runtime/native.js'
import { type ReplayRow, replayRow } from '../runtime/native-ops.js'
import { checkValues, number, type OptionsOf, reader } from '../runtime/options.js'
import { handleOf } from '../tensor/tensor.js'
import type { OptimizerParameters } from './groups.js'
import { Optimizer, type ParameterUpdate } from './optimizer.js'
import type { StateTensors } from './state.js'

const sgdOptions = {
  /** Learning rate. Default 1e-3. May be set between steps: `optimizer.lr = …`. */
  lr: number({ min: 0, default: 1e-3 }),
  /** Factor of the momentum buffer. Default 0: no buffers. */
  momentum: number({ min: 0, default: 0 }),
  /** Adds weightDecay · parameter to the gradient. Default 0. */
  weightDecay: number({ min: 0, default: 0 }),
}

/** Options of {@link SGD}. */
export interface SGDOptions extends OptionsOf<typeof sgdOptions> {}

/** Options of a group of {@link SGD}. */
export interface SGDValues extends Required<Omit<SGDOptions, 'momentum'>> {
  /** Only read: it decides the state. */
  readonly momentum: number
}

const readOptions = reader(sgdOptions)

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
export class SGD extends Optimizer<SGDValues> {
  /** Learning rate; may be set between steps, like `weightDecay`. See {@link Optimizer} for several groups. */
  declare lr: number
  /** See {@link SGDOptions.momentum}. */
  declare readonly momentum: number
  /** See {@link SGDOptions.weightDecay}. */
  declare weightDecay: number

  /** Parameters, or groups of them with options of their own. Errors: OPTION, DISPOSED. */
  constructor(params: OptimizerParameters<SGDOptions>, options?: SGDOptions) {
    super('SGD', params, readOptions('SGD', options))
  }

  protected override checkedOptions(op: string, source: object, prefix: string): SGDValues {
    return checkValues(op, source, sgdOptions, prefix)
  }

  protected override stateTensors({ momentum }: SGDValues): StateTensors {
    return momentum > 0 ? { momentum_buffer: 'any' } : {}
  }

  /** @internal */
  protected override replayRow(step: number, options: SGDValues): ReplayRow {
    return replayRow.sgd({ step, ...options })
  }

  protected override update(updates: readonly ParameterUpdate<SGDValues>[]): void {
    native.sgd(
      updates.map(({ parameter, grad, step, tensors, options: { lr, momentum, weightDecay } }) => {
        const buffer = tensors.momentum_buffer ? handleOf(tensors.momentum_buffer) : null
        return { p: handleOf(parameter), g: handleOf(grad), buffer, step, lr, momentum, weightDecay }
      }),
    )
  }
}
