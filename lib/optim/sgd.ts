import { checkNumber, checkOptions } from '../check.js'
import { native } from '../native.js'
import type { Parameter } from '../nn/parameter.js'
import { type StepNumbers, stepKinds } from '../recorder.js'
import { handleOf, type Tensor } from '../tensor.js'
import { Optimizer, type OptimizerOptions, type ParameterState, type StateTensors } from './optimizer.js'

/** Options of {@link SGD}. */
export interface SGDOptions {
  /** Default 1e-3. May be changed between steps by `optimizer.lr = …`. */
  lr?: number
  /** Factor of the buffer of past gradients. Default 0: no buffers. */
  momentum?: number
  /** weightDecay · parameter is added to the gradient. Default 0. */
  weightDecay?: number
}

const usual = { lr: 1e-3, momentum: 0, weightDecay: 0 } as const
const optionNames = Object.keys(usual) as (keyof typeof usual)[]

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
  /** Learning rate; may be changed between steps, as `weightDecay`. */
  lr: number
  /** See {@link SGDOptions.momentum}. */
  readonly momentum: number
  /** See {@link SGDOptions.weightDecay}. */
  weightDecay: number

  /** Errors: OPTION, DISPOSED. */
  constructor(params: Iterable<Parameter>, options?: SGDOptions) {
    super('SGD', params)
    const given = checkOptions<SGDOptions>('SGD', options, optionNames)
    const { lr, momentum, weightDecay } = this.checkedOptions('SGD', { ...usual, ...given })
    this.lr = lr
    this.momentum = momentum
    this.weightDecay = weightDecay
  }

  override step(): void {
    this.checkedOptions('SGD.step', this)
    super.step()
  }

  protected override checkedOptions(
    op: string,
    source: { [N in keyof SGDOptions]: unknown },
  ): OptimizerOptions & Required<SGDOptions> {
    return {
      lr: checkNumber(op, 'lr', source.lr, 0),
      momentum: checkNumber(op, 'momentum', source.momentum, 0),
      weightDecay: checkNumber(op, 'weightDecay', source.weightDecay, 0),
    }
  }

  protected override stateTensors({ momentum }: { momentum: number }): StateTensors {
    return momentum > 0 ? { momentum_buffer: 'any' } : {}
  }

  /** @internal */
  protected override stepNumbers(step: number): StepNumbers {
    const { lr, momentum, weightDecay } = this.checkedOptions('SGD.step', this)
    return [stepKinds.sgd, 0, step, lr, momentum, 0, 0, weightDecay]
  }

  protected update(parameter: Parameter, grad: Tensor, { step, tensors }: ParameterState): void {
    const buffer = tensors.momentum_buffer ? handleOf(tensors.momentum_buffer) : null
    native.sgd(handleOf(parameter), handleOf(grad), buffer, step, this.lr, this.momentum, this.weightDecay)
  }
}
