import { record } from '../autograd/autograd.js'
import { atBackwardEnd } from '../autograd/backward.js'
import type { HookHandle } from '../autograd/context.js'
import { currentObserver } from '../autograd/context.js'
import { copyArray, fail } from '../runtime/check.js'
import type { Handle } from '../runtime/native.js'
import { releaseAll, share } from '../tensor/handles.js'
import { checkTensor, handleOf, isKept, isTensor, type Tensor, type TensorMeta, wrap } from '../tensor/tensor.js'
import type { Module } from './module.js'

/** Sees the arguments before `forward`; an array that it returns replaces them. */
export type ForwardPreHook = (module: Module, args: unknown[]) => unknown[] | void
/** Sees arguments and result after `forward`; anything but undefined that it returns replaces the result. */
// biome-ignore lint/suspicious/noExplicitAny: a hook may replace the result by anything
export type ForwardHook = (module: Module, args: unknown[], result: any) => any
/**
 * Sees the gradients of the tensor arguments and of the tensors of the result, null where nothing flows; an array that
 * it returns replaces `gradInput`.
 */
export type BackwardHook = (
  module: Module,
  gradInput: (Tensor | null)[],
  gradOutput: (Tensor | null)[],
) => (Tensor | null)[] | void

interface Kinds {
  pre: ForwardPreHook
  post: ForwardHook
  backward: BackwardHook
}

type Forward = (...args: unknown[]) => unknown

/** A result that can be rebuilt with other tensors in it, such as a MoEResult. */
export interface TensorContainer {
  mapTensors(f: (tensor: Tensor) => Tensor): unknown
}

/** Hooks of one module. The first hook puts a wrapper of `forward` on the instance; without hooks there is no cost. */
class Hooks {
  readonly pre = new Set<{ fn: ForwardPreHook }>()
  readonly post = new Set<{ fn: ForwardHook }>()
  readonly backward = new Set<{ fn: BackwardHook }>()
  readonly #module: Module

  constructor(module: Module) {
    this.#module = module
    const forward = (module as unknown as { forward?: unknown }).forward
    if (typeof forward !== 'function')
      fail('OPTION', 'Module hooks', `${module.constructor.name} has no forward method`)
    Object.defineProperty(module, 'forward', {
      value: (...args: unknown[]) => this.#run((...rest) => (forward as Forward).apply(module, rest), args),
      configurable: true,
      writable: true,
      enumerable: false,
    })
  }

  add<K extends keyof Kinds>(kind: K, fn: Kinds[K]): HookHandle {
    const entry = { fn }
    const set = this[kind] as unknown as Set<{ fn: Kinds[K] }>
    set.add(entry)
    const handle = { remove: () => void set.delete(entry) }
    currentObserver()?.hook(handle, fn)
    return handle
  }

  #run(forward: Forward, given: unknown[]): unknown {
    let args = given
    for (const { fn } of [...this.pre]) {
      const replaced = fn(this.#module, args)
      if (replaced !== undefined) {
        args = copyArray('forward pre-hook', 'what a hook returns', replaced, 1000)
      }
    }
    const hooks = [...this.backward].map(({ fn }) => fn)
    let result = hooks.length > 0 ? this.#withBackward(forward, args, hooks) : forward(...args)
    for (const { fn } of [...this.post]) {
      const replaced = fn(this.#module, args, result)
      if (replaced !== undefined) result = replaced
    }
    return result
  }

  /** Puts an identity op before and after the module: the second sees gradOutput, the first gradInput. */
  #withBackward(forward: Forward, args: unknown[], hooks: readonly BackwardHook[]): unknown {
    let gradOutput: (Handle | null)[] = []
    const inputs = args.filter(isTensor)
    const inputMeta = inputs.map(metaOf)
    const outputMeta: TensorMeta[] = []
    const seen = identity(inputs, (gradInput) =>
      callHooks(this.#module, hooks, gradInput, inputMeta, gradOutput, outputMeta),
    )
    let next = 0
    const result = forward(...args.map((arg) => (isTensor(arg) ? seen[next++] : arg)))
    const outputs: Tensor[] = []
    mapTensors(result, (tensor) => {
      outputs.push(tensor)
      return tensor
    })
    outputMeta.push(...outputs.map(metaOf))
    const inputsNeedGrad = inputs.some((input) => input.requiresGrad)
    const passed = identity(outputs, (grads) => {
      gradOutput = shareAll(grads)
      atBackwardEnd(() => releaseAll(gradOutput.splice(0)))
      if (!inputsNeedGrad) {
        const none = inputs.map(() => null)
        releaseAll(callHooks(this.#module, hooks, none, inputMeta, gradOutput, outputMeta))
      }
      return shareAll(grads)
    })
    next = 0
    return mapTensors(result, () => passed[next++])
  }
}

const all = new WeakMap<Module, Hooks>()

export function hooksOf(module: Module): Hooks {
  let hooks = all.get(module)
  if (!hooks) {
    hooks = new Hooks(module)
    all.set(module, hooks)
  }
  return hooks
}

/** The tensors themselves, as outputs of one op whose backward is `f`. */
function identity(tensors: readonly Tensor[], f: (grads: readonly (Handle | null)[]) => (Handle | null)[]): Tensor[] {
  const outputs = tensors.map((tensor) => wrap(share(handleOf(checkTensor('forward', 'argument', tensor))), tensor))
  const differentiable = outputs.filter((_, i) => tensors[i].requiresGrad)
  const positions = tensors.flatMap((tensor, i) => (tensor.requiresGrad ? [i] : []))
  record({
    op: 'module hook',
    inputs: positions.map((i) => tensors[i]),
    outputs: differentiable,
    backward: (grads) => {
      const full: (Handle | null)[] = tensors.map(() => null)
      for (const [at, i] of positions.entries()) full[i] = grads[at]
      const results = f(full)
      releaseAll(results.filter((_, i) => !positions.includes(i))) // a hook may return gradients that nobody needs
      return positions.map((i) => results[i])
    },
  })
  return outputs
}

function callHooks(
  module: Module,
  hooks: readonly BackwardHook[],
  gradInput: readonly (Handle | null)[],
  inputMeta: readonly TensorMeta[],
  gradOutput: (Handle | null)[],
  outputMeta: readonly TensorMeta[],
): (Handle | null)[] {
  let current = shareAll(gradInput)
  try {
    for (const hook of hooks) {
      const replaced = callHook(module, hook, current, inputMeta, gradOutput, outputMeta)
      if (replaced === null) continue
      releaseAll(current)
      current = replaced
    }
    return current
  } catch (error) {
    releaseAll(current)
    throw error
  } finally {
    releaseAll(gradOutput.splice(0))
  }
}

/** The gradients that a hook returns, or null. */
function callHook(
  module: Module,
  hook: BackwardHook,
  gradInput: readonly (Handle | null)[],
  inputMeta: readonly TensorMeta[],
  gradOutput: readonly (Handle | null)[],
  outputMeta: readonly TensorMeta[],
): (Handle | null)[] | null {
  const op = 'full backward hook'
  const inputs = wrapAll(gradInput, inputMeta)
  const outputs = wrapAll(gradOutput, outputMeta)
  try {
    const replaced = hook(module, [...inputs], [...outputs])
    if (replaced === undefined || replaced === null) return null
    const grads = copyArray(op, 'what a hook returns', replaced, inputs.length)
    if (grads.length !== inputs.length) fail('OPTION', op, `a hook must return ${inputs.length} gradients or nothing`)
    const tensors = grads.map((grad, i) =>
      grad === null ? null : checkTensor(op, `gradient ${i}`, grad, inputMeta[i]),
    )
    return shareAll(tensors.map((tensor) => tensor && handleOf(tensor)))
  } finally {
    for (const tensor of [...inputs, ...outputs]) if (tensor && !isKept(tensor)) tensor.dispose()
  }
}

const shareAll = (handles: readonly (Handle | null)[]): (Handle | null)[] =>
  handles.map((handle) => (handle === null ? null : share(handle)))

/** A tensor for each entry of `meta`; null where there is no handle. */
const wrapAll = (handles: readonly (Handle | null)[], meta: readonly TensorMeta[]): (Tensor | null)[] =>
  meta.map((meta, i) => (handles[i] ? wrap(share(handles[i]), meta) : null))

const metaOf = ({ shape, dtype, device }: Tensor): TensorMeta => ({ shape, dtype, device })

const asData = { writable: true, enumerable: true, configurable: true } // also of a key `__proto__`

/**
 * Rebuilds a result with `f` applied to each tensor in it: a Tensor, an array, a container, or a plain object. An object
 * that is in it several times, or in itself, is so in the new result; `copies` has those so far.
 */
export function mapTensors(
  value: unknown,
  f: (tensor: Tensor) => Tensor,
  copies = new Map<object, unknown>(),
): unknown {
  if (isTensor(value)) return f(value)
  if (typeof value !== 'object' || value === null) return value
  if (typeof (value as TensorContainer).mapTensors === 'function') return (value as TensorContainer).mapTensors(f)
  if (copies.has(value)) return copies.get(value)
  if (Array.isArray(value)) {
    const copy: unknown[] = []
    copies.set(value, copy)
    for (const entry of value) copy.push(mapTensors(entry, f, copies))
    return copy
  }
  if (Object.getPrototypeOf(value) !== Object.prototype) return value
  const copy: Record<string, unknown> = {}
  copies.set(value, copy)
  for (const [key, entry] of Object.entries(value))
    Object.defineProperty(copy, key, { ...asData, value: mapTensors(entry, f, copies) })
  return copy
}
