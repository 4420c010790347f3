import { checkNumber, fail } from '../check.js'
import { refuseInCapture } from '../context.js'
import { MoeError, show } from '../errors.js'
import { type Handle, native } from '../native.js'
import { Parameter } from '../nn/parameter.js'
import { norm } from '../norm.js'
import { type OptionsOf, oneOf, reader } from '../options.js'
import { handleOf } from '../tensor.js'

const clipOptions = {
  /** 'throw': a non-finite norm is a NON_FINITE error. Default 'propagate'. */
  onNonFinite: oneOf(['propagate', 'throw'], { default: 'propagate' }),
}

/** Options of {@link clipGradNorm}. */
export interface ClipOptions extends OptionsOf<typeof clipOptions> {}

const readOptions = reader(clipOptions)

/**
 * Scales all gradients in place so that their joint 2-norm is at most `maxNorm`, and returns the original norm. If it
 * is not finite, the gradients do not change, so that the caller can skip the step. Pascanu et al., arXiv 1211.5063,
 * §3.2, as torch.nn.utils.clip_grad_norm_. Errors: OPTION, NON_FINITE.
 *
 * @example
 * ```ts
 * const model = new Linear(4, 1)
 * model.forward(full([8, 4], 100)).sum().backward()
 * clipGradNorm(model.parameters(), 1)
 * console.log(clipGradNorm(model.parameters(), 1).toFixed(3)) // → 1.000
 * ```
 */
export function clipGradNorm(params: Iterable<Parameter>, maxNorm: number, options?: ClipOptions): number {
  const op = 'clipGradNorm'
  if (typeof params !== 'object' || params === null || typeof params[Symbol.iterator] !== 'function') {
    fail('OPTION', op, `params must be parameters, such as model.parameters(), got ${show(params)}`)
  }
  checkNumber(op, 'maxNorm', maxNorm, 0)
  refuseInCapture(op, 'it waits for the device')
  const { onNonFinite } = readOptions(op, options)
  const grads: Handle[] = []
  for (const parameter of params) {
    if (!(parameter instanceof Parameter)) fail('OPTION', op, `params must hold Parameters, got ${show(parameter)}`)
    if (parameter.grad) grads.push(handleOf(parameter.grad))
  }
  const before = norm(grads)
  if (!Number.isFinite(before)) {
    if (onNonFinite === 'throw') throw new MoeError('NON_FINITE', op, `the gradient norm must be finite, got ${before}`)
    return before
  }
  if (before > maxNorm) for (const grad of grads) native.scale({ x: grad, factor: maxNorm / (before + 1e-6) })
  return before
}
