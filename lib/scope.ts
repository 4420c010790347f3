import { types } from 'node:util'
import { checkFunction } from './check.js'
import { currentLasting, currentScope, within } from './context.js'
import { defaultGenerator, drawnOrNot } from './random.js'
import { checkTensor, gradOwnerOf, isTensor, moveToScope, type Tensor } from './tensor.js'

/** Tensors made inside one `scope` call. */
export class Scope {
  readonly tensors = new Set<Tensor>()
  readonly parent: Scope | null

  constructor(parent: Scope | null) {
    this.parent = parent
  }

  /** Disposes everything but `kept` tensors and the gradients of survivors, which move to the parent. */
  close(kept: ReadonlySet<Tensor>): void {
    const survives = (tensor: Tensor): boolean => {
      // A gradient may have a gradient, and programs can even tie such a chain into a ring.
      for (const seen = new Set<Tensor>(); !seen.has(tensor); ) {
        if (kept.has(tensor)) return true
        seen.add(tensor)
        const owner = gradOwnerOf(tensor)
        if (owner === null || owner.disposed) return false
        if (!this.tensors.has(owner)) return true
        tensor = owner
      }
      return false
    }
    const survivors = [...this.tensors].filter(survives)
    for (const tensor of survivors) moveToScope(tensor, this.parent)
    for (const tensor of [...this.tensors]) tensor.dispose()
  }
}

/**
 * Runs `fn` and frees every tensor made inside, except what it returns (in arrays, maps and objects too), parameters,
 * gradients of tensors that survive, and what {@link keep} names. Nests; an async `fn` gives a promise and keeps its
 * scope across `await`. Errors of `fn` pass through.
 *
 * @example
 * ```ts
 * const before = memory().tensors
 * const y = scope(() => ones([3]).mul(2).add(1))
 * console.log(y.dataSync(), memory().tensors - before) // → Float32Array(3) [ 3, 3, 3 ] 1
 * y.dispose()
 * ```
 */
export function scope<T>(fn: () => T): T {
  checkFunction('scope', 'fn', fn)
  const inner = new Scope(currentScope())
  return settle(
    () => within({ scope: inner }, fn),
    (value) => inner.close(tensorsIn(value)),
    () => inner.close(new Set()),
  )
}

/**
 * Runs `fn` without recording operations: less memory, no backward. Nests, follows `await`, and frees nothing by
 * itself.
 *
 * @example
 * ```ts
 * const layer = new Linear(4, 2)
 * const y = noGrad(() => layer.forward(ones([1, 4])))
 * console.log(y.requiresGrad) // → false
 * ```
 */
export function noGrad<T>(fn: () => T): T {
  checkFunction('noGrad', 'fn', fn)
  return within({ gradEnabled: false }, fn)
}

/** Runs `fn` outside of every scope: what it makes lives until disposed. */
export const withoutScope = <T>(fn: () => T): T => within({ scope: null }, fn)

/** A {@link scope} around one call of this package: if it throws, it has not drawn random numbers either. */
export const callScope = <T>(fn: () => T): T => drawnOrNot(defaultGenerator, () => scope(fn))

/**
 * Runs `fn`, which makes parameters and tensors named by {@link keep}; all others are freed. If it throws, none of them
 * is left, and no random numbers have been drawn.
 */
export function allOrNone<T>(fn: () => T): T {
  const around = currentLasting()
  const inner = new Scope(null)
  const lasting = new Set<Tensor>()
  try {
    const value = drawnOrNot(defaultGenerator, () => within({ scope: inner, lasting }, fn))
    for (const tensor of lasting) around?.add(tensor)
    return value
  } catch (error) {
    for (const tensor of lasting) tensor.dispose()
    throw error
  } finally {
    inner.close(new Set())
  }
}

/** Takes a tensor out of its scope. */
export function outlive(tensor: Tensor): void {
  moveToScope(tensor, null)
  currentLasting()?.add(tensor)
}

/**
 * Takes a tensor out of its scope: it lives until `dispose()`. Returns it. Errors: OPTION for anything but a Tensor,
 * DISPOSED.
 *
 * @example
 * ```ts
 * const seen: Tensor[] = []
 * scope(() => {
 *   seen.push(keep(ones([2])))
 *   seen.push(ones([2]))
 * })
 * console.log(seen.map((tensor) => tensor.disposed)) // → [ false, true ]
 * seen[0].dispose()
 * ```
 */
export function keep<T extends Tensor>(tensor: T): T {
  outlive(checkTensor('keep', 'tensor', tensor))
  return tensor
}

function settle<T>(run: () => T, done: (value: unknown) => void, failed: () => void): T {
  const fail = (error: unknown): never => {
    failed()
    throw error
  }
  const finish = <V>(value: V): V => {
    done(value)
    return value
  }
  try {
    const value = run()
    return value instanceof Promise ? (value.then(finish, fail) as T) : finish(value)
  } catch (error) {
    return fail(error)
  }
}

const isObject = (value: unknown): boolean => typeof value === 'object' && value !== null

/** Not of a subclass, whose objects have properties of their own. */
const isPlain = (array: object): boolean => Object.getPrototypeOf(array) === Array.prototype

/** The objects that a value holds directly. Long arrays of numbers cost no descriptors; no getter runs elsewhere. */
function* contents(value: object): Iterable<unknown> {
  if (ArrayBuffer.isView(value)) return
  if (Array.isArray(value) && !types.isProxy(value) && isPlain(value) && value.length <= 2 ** 27) {
    for (let i = 0; i < value.length; i++) if (isObject(value[i])) yield value[i]
    return
  }
  if (value instanceof Map || value instanceof Set) for (const entry of value.entries()) yield* entry
  for (const key of Reflect.ownKeys(value)) yield Reflect.getOwnPropertyDescriptor(value, key)?.value
}

/** Every tensor that can be reached from a value through arrays, maps, sets and own data properties. */
export function tensorsIn(value: unknown): Set<Tensor> {
  const found = new Set<Tensor>()
  const seen = new Set<unknown>()
  const queue: unknown[] = [value]
  while (queue.length > 0) {
    const next = queue.pop()
    if (!isObject(next) || seen.has(next)) continue
    seen.add(next)
    if (isTensor(next)) {
      found.add(next)
      continue
    }
    try {
      for (const value of contents(next as object)) if (isObject(value)) queue.push(value)
    } catch {
      // A hostile proxy shows nothing.
    }
  }
  return found
}
