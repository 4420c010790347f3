import { types } from 'node:util'
import { checkFunction, fail } from '../runtime/check.js'
import {
  checkTensor,
  disown,
  gradOwnerOf,
  guard,
  isTensor,
  markLasting,
  moveToScope,
  type Tensor,
} from '../tensor/tensor.js'
import { currentLasting, currentScope, openScope, Scope, within } from './context.js'
import { defaultGenerator, restoringOnError } from './random.js'

/** Disposes the tensors of a scope except `kept` ones and gradients of survivors, which move to its parent. */
function close(scope: Scope, kept: ReadonlySet<Tensor>): void {
  const survives = (tensor: Tensor): boolean => {
    // A gradient may have a gradient, and a program can even create a cycle of them.
    for (const seen = new Set<Tensor>(); !seen.has(tensor); ) {
      if (kept.has(tensor)) return true
      seen.add(tensor)
      const owner = gradOwnerOf(tensor)
      if (owner === null || owner.disposed) return false
      if (!scope.tensors.has(owner)) return true
      tensor = owner
    }
    return false
  }
  const survivors = [...scope.tensors].filter(survives)
  scope.closed = true
  for (const tensor of survivors) moveToScope(tensor, openScope(scope.parent))
  for (const tensor of survivors) {
    const owner = gradOwnerOf(tensor)
    if (owner && scope.tensors.has(owner)) disown(tensor)
  }
  for (const tensor of [...scope.tensors]) tensor.dispose()
}

/**
 * Runs `fn` and frees every tensor created inside, except those that it returns (also within arrays, maps, sets and
 * objects), parameters, gradients of surviving tensors, and those passed to {@link keep}. Scopes nest. With an async
 * `fn` the scope lasts until its promise settles. Rethrows errors of `fn`.
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
  const goesOn = () => {
    inner.isAsync = true
    for (const tensor of inner.tensors) guard(tensor)
  }
  return settle(
    () => within({ scope: inner }, fn),
    goesOn,
    (value) => close(inner, tensorsIn(value)),
    () => close(inner, new Set()),
  )
}

/**
 * Runs `fn` without recording operations: it saves memory and has no backward. Nests, follows `await`, and frees
 * nothing.
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

/** Runs `fn` outside every scope: its tensors live until disposed. */
export const withoutScope = <T>(fn: () => T): T => within({ scope: null }, fn)

/** A {@link scope} around one call of this package: if it throws, the default generator does not advance. */
export const callScope = <T>(fn: () => T): T => restoringOnError(defaultGenerator, () => scope(fn))

/**
 * Runs `fn`, which creates parameters and tensors passed to {@link keep}; all others are freed. If it throws, all are
 * freed, and the default generator does not advance. For constructors of modules.
 *
 * @example
 * ```ts
 * class Pair extends Module {
 *   first: Linear
 *   second: Linear
 *   constructor(dim: number) {
 *     super()
 *     ;[this.first, this.second] = allOrNone(() => [new Linear(dim, dim), new Linear(dim, dim)])
 *   }
 * }
 * console.log(new Pair(4).parameters().length) // → 4
 * ```
 */
export function allOrNone<T>(fn: () => T): T {
  const around = currentLasting()
  const inner = new Scope(null)
  const lasting = new Set<Tensor>()
  try {
    const value = restoringOnError(defaultGenerator, () => within({ scope: inner, lasting }, fn))
    for (const tensor of lasting) around?.add(tensor)
    return value
  } catch (error) {
    for (const tensor of lasting) tensor.dispose()
    throw error
  } finally {
    close(inner, new Set())
  }
}

/**
 * Runs `fn` in a scope. Returns its result, and the tensors in it that it created. Errors: OPTION if `fn` is async, for
 * `op`.
 */
export function madeBy<T>(op: string, fn: () => T): { value: T; made: Tensor[] } {
  return scope(() => {
    const value = fn()
    if (types.isPromise(value)) {
      value.catch(() => {})
      fail('OPTION', op, 'fn must not be async')
    }
    const made = [...tensorsIn(value)].filter((tensor) => currentScope()?.tensors.has(tensor))
    return { value, made }
  })
}

/** Removes a tensor from its scope. */
export function outlive(tensor: Tensor): void {
  moveToScope(tensor, null)
  markLasting(tensor)
  currentLasting()?.add(tensor)
}

/**
 * Removes a tensor from its scope, so that it lives until `dispose()`, and returns it. Errors: OPTION for anything but
 * a Tensor, DISPOSED.
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
  disown(tensor)
  return tensor
}

function settle<T>(run: () => T, pending: () => void, done: (value: unknown) => void, failed: () => void): T {
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
    if (!types.isPromise(value)) return finish(value)
    pending()
    return value.then(finish, fail) as T
  } catch (error) {
    return fail(error)
  }
}

const isObject = (value: unknown): boolean => typeof value === 'object' && value !== null

/** Not a subclass, whose objects may have other properties. */
const isPlain = (array: object): boolean => Object.getPrototypeOf(array) === Array.prototype

/** Adds the objects directly in a value. Plain arrays are read by index, everything else without running getters. */
function addContents(value: object, found: unknown[]): void {
  const add = (entry: unknown) => {
    if (isObject(entry)) found.push(entry)
  }
  if (ArrayBuffer.isView(value)) return
  if (Array.isArray(value) && !types.isProxy(value) && isPlain(value) && value.length <= 2 ** 27) {
    for (let i = 0; i < value.length; i++) add(value[i])
    return
  }
  if (value instanceof Map || value instanceof Set) for (const entry of value.entries()) entry.forEach(add)
  for (const key of Reflect.ownKeys(value)) add(Reflect.getOwnPropertyDescriptor(value, key)?.value)
}

/** Every tensor reachable from a value through arrays, maps, sets and own data properties. */
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
      addContents(next as object, queue)
    } catch {
      // A hostile proxy has no visible contents.
    }
  }
  return found
}
