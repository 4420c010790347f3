import { native } from '../native.js'
import { replayRow } from '../native-ops.js'
import type { Parameter } from '../nn/parameter.js'
import { checkValues, number, type OptionsOf, reader } from '../options.js'
import type { ReplayRow } from '../recorder.js'
import { handleOf } from '../tensor.js'
import { Optimizer, type OptimizerOptions, type ParameterUpdate, type StateTensors } from './optimizer.js'

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
export class SGD extends Optimizer {
  /** Learning rate; may be set between steps, like `weightDecay`. */
  lr: number
  /** See {@link SGDOptions.momentum}. */
  readonly momentum: number
  /** See {@link SGDOptions.weightDecay}. */
  weightDecay: number

  /** Errors: OPTION, DISPOSED. */
  constructor(params: Iterable<Parameter>, options?: SGDOptions) {
    super('SGD', params)
    const { lr, momentum, weightDecay } = readOptions('SGD', options)
    this.lr = lr
    this.momentum = momentum
    this.weightDecay = weightDecay
  }

  protected override checkedOptions(op: string, source: object): OptimizerOptions & Required<SGDOptions> {
    return checkValues(op, source, sgdOptions)
  }

  protected override stateTensors({ momentum }: { momentum: number }): StateTensors {
    return momentum > 0 ? { momentum_buffer: 'any' } : {}
  }

  /** @internal */
  protected override replayRow(step: number): ReplayRow {
    return replayRow.sgd({ step, ...this.checkedOptions('SGD.step', this) })
  }

  protected update(updates: readonly ParameterUpdate[]): void {
    const { lr, momentum, weightDecay } = this
    native.sgd(
      updates.map(({ parameter, grad, step, tensors }) => {
        const buffer = tensors.momentum_buffer ? handleOf(tensors.momentum_buffer) : null
        return { p: handleOf(parameter), g: handleOf(grad), buffer, step, lr, momentum, weightDecay }
      }),
    )
  }
}
