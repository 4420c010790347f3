import { checkNumber, checkOptions } from '../check.js'
import { native } from '../native.js'
import type { Parameter } from '../nn/parameter.js'
import { type StepNumbers, stepKinds } from '../recorder.js'
import { handleOf, type Tensor } from '../tensor.js'
import { Optimizer, type ParameterState } from './optimizer.js'

/** Options of {@link SGD}. */
export interface SGDOptions {
  /** Default 1e-3. May be changed between steps by `optimizer.lr = …`. */
  lr?: number
  /** Factor of the buffer of past gradients. Default 0: no buffers. */
  momentum?: number
  /** weightDecay · parameter is added to the gradient. Default 0. */
  weightDecay?: number
}

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
  protected readonly stateNames: readonly string[]

  /** Errors: OPTION, DISPOSED. */
  constructor(params: Iterable<Parameter>, options?: SGDOptions) {
    super('SGD', params)
    const o = checkOptions<SGDOptions>('SGD', options, ['lr', 'momentum', 'weightDecay'])
    this.lr = checkNumber('SGD', 'lr', o.lr ?? 1e-3, 0)
    this.momentum = checkNumber('SGD', 'momentum', o.momentum ?? 0, 0)
    this.weightDecay = checkNumber('SGD', 'weightDecay', o.weightDecay ?? 0, 0)
    this.stateNames = this.momentum > 0 ? ['momentum_buffer'] : []
  }

  override step(): void {
    this.#check()
    super.step()
  }

  #check(): void {
    checkNumber('SGD.step', 'lr', this.lr, 0)
    checkNumber('SGD.step', 'weightDecay', this.weightDecay, 0)
  }

  /** @internal */
  protected override stepNumbers(step: number): StepNumbers {
    this.#check()
    return [stepKinds.sgd, 0, step, this.lr, this.momentum, 0, 0, this.weightDecay]
  }

  protected update(parameter: Parameter, grad: Tensor, { step, tensors }: ParameterState): void {
    const buffer = tensors.momentum_buffer ? handleOf(tensors.momentum_buffer) : null
    native.sgd(handleOf(parameter), handleOf(grad), buffer, step, this.lr, this.momentum, this.weightDecay)
  }
}
