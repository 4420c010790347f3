import { checkNumber, checkOptions, copyArray, fail } from '../check.js'
import { native } from '../native.js'
import type { Parameter } from '../nn/parameter.js'
import { type StepNumbers, stepKinds } from '../recorder.js'
import { handleOf, type Tensor } from '../tensor.js'
import { Optimizer, type ParameterState } from './optimizer.js'

/** Options of {@link AdamW}. */
export interface AdamWOptions {
  /** Default 1e-3. May be changed between steps by `optimizer.lr = …`. */
  lr?: number
  /** Decay of the running means of gradient and squared gradient, each from 0, below 1. Default [0.9, 0.999]. */
  betas?: readonly [number, number]
  /** Added to the root of the second mean. Default 1e-8. */
  eps?: number
  /** Each step takes lr · weightDecay of the parameter away. Default 1e-2. */
  weightDecay?: number
}

/**
 * Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), the update of
 * torch.optim.AdamW. The state of a parameter is two tensors of its shape, made at its first step.
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
  /** Learning rate; may be changed between steps, as the three others. */
  lr: number
  /** See {@link AdamWOptions.betas}. */
  betas: readonly [number, number]
  /** See {@link AdamWOptions.eps}. */
  eps: number
  /** See {@link AdamWOptions.weightDecay}. */
  weightDecay: number
  protected readonly stateNames = ['exp_avg', 'exp_avg_sq']

  /** Errors: OPTION, DISPOSED. */
  constructor(params: Iterable<Parameter>, options?: AdamWOptions) {
    const op = 'AdamW'
    super(op, params)
    const o = checkOptions<AdamWOptions>(op, options, ['lr', 'betas', 'eps', 'weightDecay'])
    const betas = copyArray(op, 'betas', o.betas ?? [0.9, 0.999], 2) as [number, number]
    if (betas.length !== 2) fail('OPTION', op, `betas must be two numbers, got ${betas.length}`)
    this.lr = o.lr ?? 1e-3
    this.betas = [betas[0], betas[1]]
    this.eps = o.eps ?? 1e-8
    this.weightDecay = o.weightDecay ?? 1e-2
    this.#check(op)
  }

  override step(): void {
    this.#check('AdamW.step')
    super.step()
  }

  #check(op: string): void {
    checkNumber(op, 'lr', this.lr, 0)
    checkNumber(op, 'eps', this.eps, 0)
    checkNumber(op, 'weightDecay', this.weightDecay, 0)
    for (const [i, beta] of this.betas.entries()) {
      if (checkNumber(op, `betas[${i}]`, beta, 0) >= 1) fail('OPTION', op, `betas[${i}] must be below 1, got ${beta}`)
    }
  }

  /** @internal */
  protected override stepNumbers(step: number): StepNumbers {
    this.#check('AdamW.step')
    return [stepKinds.adamw, 0, step, this.lr, ...this.betas, this.eps, this.weightDecay]
  }

  protected update(parameter: Parameter, grad: Tensor, { step, tensors }: ParameterState): void {
    const [beta1, beta2] = this.betas
    native.adamw(
      handleOf(parameter),
      handleOf(grad),
      handleOf(tensors.exp_avg),
      handleOf(tensors.exp_avg_sq),
      step,
      this.lr,
      beta1,
      beta2,
      this.eps,
      this.weightDecay,
    )
  }
}
