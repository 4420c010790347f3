import { checkNumber, checkOptions, copyArray, fail } from '../check.js'
import { native } from '../native.js'
import type { Parameter } from '../nn/parameter.js'
import { type StepNumbers, stepKinds } from '../recorder.js'
import { handleOf, type Tensor } from '../tensor.js'
import { Optimizer, type OptimizerOptions, type ParameterState, type StateTensors } from './optimizer.js'

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

const usual = { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 1e-2 } as const
const optionNames = Object.keys(usual) as (keyof typeof usual)[]

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

  /** Errors: OPTION, DISPOSED. */
  constructor(params: Iterable<Parameter>, options?: AdamWOptions) {
    const op = 'AdamW'
    super(op, params)
    const given = checkOptions<AdamWOptions>(op, options, optionNames)
    const { lr, betas, eps, weightDecay } = this.checkedOptions(op, { ...usual, ...given })
    this.lr = lr
    this.betas = betas
    this.eps = eps
    this.weightDecay = weightDecay
  }

  override step(): void {
    this.checkedOptions('AdamW.step', this)
    super.step()
  }

  protected override checkedOptions(
    op: string,
    source: { [N in keyof AdamWOptions]: unknown },
  ): OptimizerOptions & Required<AdamWOptions> {
    const betas = copyArray(op, 'betas', source.betas, 2)
    if (betas.length !== 2) fail('OPTION', op, `betas must be two numbers, got ${betas.length}`)
    const [beta1, beta2] = betas.map((beta, i) => {
      if (checkNumber(op, `betas[${i}]`, beta, 0) < 1) return beta as number
      return fail('OPTION', op, `betas[${i}] must be below 1, got ${beta}`)
    })
    return {
      lr: checkNumber(op, 'lr', source.lr, 0),
      betas: [beta1, beta2],
      eps: checkNumber(op, 'eps', source.eps, 0),
      weightDecay: checkNumber(op, 'weightDecay', source.weightDecay, 0),
    }
  }

  protected override stateTensors(): StateTensors {
    return { exp_avg: 'any', exp_avg_sq: 'non-negative' }
  }

  /** @internal */
  protected override stepNumbers(step: number): StepNumbers {
    const { lr, betas, eps, weightDecay } = this.checkedOptions('AdamW.step', this)
    return [stepKinds.adamw, 0, step, lr, ...betas, eps, weightDecay]
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
