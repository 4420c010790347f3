import { checkNumber, checkOptions } from '../check.js'
import { native } from '../native.js'
import type { Parameter } from '../nn/parameter.js'
import { handleOf, type Tensor } from '../tensor.js'
import { Optimizer, type ParameterState } from './optimizer.js'

export interface SGDOptions {
  /** Default 1e-3. May be changed between steps by `optimizer.lr = …`. */
  lr?: number
  /** Default 0: no buffers. */
  momentum?: number
  /** Added to the gradient. Default 0. */
  weightDecay?: number
}

/** Stochastic gradient descent with momentum, the update of torch.optim.SGD. */
export class SGD extends Optimizer {
  lr: number
  readonly momentum: number
  weightDecay: number
  protected readonly stateNames: readonly string[]

  constructor(params: Iterable<Parameter>, options?: SGDOptions) {
    super('SGD', params)
    const o = checkOptions<SGDOptions>('SGD', options, ['lr', 'momentum', 'weightDecay'])
    this.lr = checkNumber('SGD', 'lr', o.lr ?? 1e-3, 0)
    this.momentum = checkNumber('SGD', 'momentum', o.momentum ?? 0, 0)
    this.weightDecay = checkNumber('SGD', 'weightDecay', o.weightDecay ?? 0, 0)
    this.stateNames = this.momentum > 0 ? ['momentum_buffer'] : []
  }

  override step(): void {
    checkNumber('SGD.step', 'lr', this.lr, 0)
    checkNumber('SGD.step', 'weightDecay', this.weightDecay, 0)
    super.step()
  }

  protected update(parameter: Parameter, grad: Tensor, { step, tensors }: ParameterState): void {
    const buffer = tensors.momentum_buffer ? handleOf(tensors.momentum_buffer) : null
    native.sgd(handleOf(parameter), handleOf(grad), buffer, step, this.lr, this.momentum, this.weightDecay)
  }
}
