import { refuseToWait } from '../autograd/context.js'
import { Parameter } from '../nn/parameter.js'
import { checkNumber, fail } from '../runtime/check.js'
import type { Device } from '../runtime/device.js'
import { MoeError, show } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { boolean, type OptionsOf, oneOf, reader } from '../runtime/options.js'
import { full, zeros } from '../tensor/create.js'
import { handleList, norm } from '../tensor/norm.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

const clipOptions = {
  /** 'throw': a non-finite norm is a NON_FINITE error. Default 'propagate'. */
  onNonFinite: oneOf(['propagate', 'throw'], { default: 'propagate' }),
  /** false: the norm is a tensor, and nothing waits for a GPU, so that a captured step can clip. Default true. */
  wait: boolean({ default: true }),
}

/** Options of {@link clipGradNorm}. */
export interface ClipOptions extends OptionsOf<typeof clipOptions> {}

const readOptions = reader(clipOptions)

/**
 * Scales the gradients in place, each once, so that their joint 2-norm is at most `maxNorm`, and returns the original norm: a
 * number, or with `wait: false` a tensor f64 [] on the device, which all gradients are then on. If the norm is not
 * finite, the gradients do not change, so that the caller can skip the step. Without waiting, f64 gradients whose
 * squares overflow count as not finite. Pascanu et al., arXiv 1211.5063, §3.2, as torch.nn.utils.clip_grad_norm_.
 * Errors: OPTION, NON_FINITE; DEVICE without waiting; UNSUPPORTED in a captured step that waits.
 *
 * @example
 * ```ts
 * const model = new Linear(4, 1)
 * model.forward(full([8, 4], 100)).sum().backward()
 * clipGradNorm(model.parameters(), 1)
 * console.log(clipGradNorm(model.parameters(), 1).toFixed(3)) // → 1.000
 * ```
 */
export function clipGradNorm(
  params: Iterable<Parameter>,
  maxNorm: number,
  options: ClipOptions & { wait: false },
): Tensor<'f64'>
export function clipGradNorm(
  params: Iterable<Parameter>,
  maxNorm: number,
  options?: ClipOptions & { wait?: true },
): number
export function clipGradNorm(
  params: Iterable<Parameter>,
  maxNorm: number,
  options?: ClipOptions,
): number | Tensor<'f64'>
export function clipGradNorm(params: Iterable<Parameter>, maxNorm: number, options?: ClipOptions) {
  const op = 'clipGradNorm'
  if (typeof params !== 'object' || params === null || typeof params[Symbol.iterator] !== 'function') {
    fail('OPTION', op, `params must be parameters, such as model.parameters(), got ${show(params)}`)
  }
  checkNumber(op, 'maxNorm', maxNorm, 0)
  const { onNonFinite, wait } = readOptions(op, options)
  if (wait) refuseToWait(op, 'it waits for the device (pass wait: false)')
  else if (onNonFinite === 'throw') fail('OPTION', op, "onNonFinite 'throw' must wait for the norm, got wait: false")
  const grads = new Map<Device, Handle[]>()
  const seen = new Set<Parameter>()
  let i = -1
  for (const parameter of params) {
    i++
    if (!(parameter instanceof Parameter)) fail('OPTION', op, `params must hold Parameters, got ${show(parameter)}`)
    const { grad } = parameter
    if (!grad || seen.has(parameter)) continue
    seen.add(parameter)
    checkTensor(op, `params[${i}].grad`, grad)
    const here = grads.get(grad.device)
    if (here) here.push(handleOf(grad))
    else grads.set(grad.device, [handleOf(grad)])
  }
  if (!wait) return clipInOrder(op, grads, maxNorm)
  const before = norm([...grads.values()])
  if (!Number.isFinite(before)) {
    if (onNonFinite === 'throw') throw new MoeError('NON_FINITE', op, `the gradient norm must be finite, got ${before}`)
    return before
  }
  if (before > maxNorm)
    for (const [device, xs] of grads) {
      using total = full([], before, { dtype: 'f64', device })
      native.clipNorm(handleList(op, xs), handleOf(total), maxNorm)
    }
  return before
}

/** Clips in the order of the device's other work. */
function clipInOrder(op: string, grads: ReadonlyMap<Device, readonly Handle[]>, maxNorm: number): Tensor<'f64'> {
  const [first, second] = grads.keys()
  if (first === undefined) return zeros([], { dtype: 'f64' })
  if (second !== undefined)
    fail('DEVICE', op, `all gradients must be on one device with wait: false, got ${first} and ${second}`)
  const xs = grads.get(first)!
  const list = handleList(op, xs)
  const total = wrap(native.norm(list, 1), { shape: [], dtype: 'f64', device: first })
  native.clipNorm(list, handleOf(total), maxNorm)
  return total
}
