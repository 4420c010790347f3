import { AsyncLocalStorage } from 'node:async_hooks'
import { MoeError } from '../runtime/errors.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Recorder } from './recorder.js'

/** The handle of a registered hook. */
export interface HookHandle {
  /** Removes the hook. A second call does nothing. */
  remove(): void
}

/** Tensors created inside one `scope` call. */
export class Scope {
  readonly tensors = new Set<Tensor>()
  readonly parent: Scope | null
  /** A timer or the loser of `Promise.race` still runs in it, but it holds no tensors any more. */
  closed = false
  /** It ends when a promise settles, which may never happen. */
  isAsync = false

  constructor(parent: Scope | null) {
    this.parent = parent
  }
}

/** The context of running code. Follows `await`. */
interface Context {
  /** The innermost scope. */
  readonly scope: Scope | null
  /** Whether ops are recorded. */
  readonly gradEnabled: boolean
  /** Tensors of the innermost `allOrNone` that no scope frees; null outside it. */
  readonly lasting: Set<Tensor> | null
}

const storage = new AsyncLocalStorage<Context>()
const outside: Context = { scope: null, gradEnabled: true, lasting: null }
const context = (): Context => storage.getStore() ?? outside

/** The nearest scope that has not ended, from `scope` outwards. */
export function openScope(scope: Scope | null): Scope | null {
  let open = scope
  while (open?.closed) open = open.parent
  return open
}

export const currentScope = (): Scope | null => openScope(context().scope)
export const isGradEnabled = (): boolean => context().gradEnabled
export const currentLasting = (): Set<Tensor> | null => context().lasting

/** Runs `fn` in a changed context. */
export const within = <T>(change: Partial<Context>, fn: () => T): T => storage.run({ ...context(), ...change }, fn)

let computingAgain = false

/** Whether a forward runs again for its backward: what it counts has been counted. */
export const isComputingAgain = (): boolean => computingAgain

/** Runs `fn`, a forward that has run before. */
export function computeAgain<T>(fn: () => T): T {
  const before = computingAgain
  computingAgain = true
  try {
    return fn()
  } finally {
    computingAgain = before
  }
}

/** Is told what a forward does besides its ops. */
export interface Observer {
  /** It reads whether a module is in training mode. */
  mode(module: object, training: boolean): void
  /** It registers `fn` as a hook. */
  hook(handle: HookHandle, fn: object): void
}

let observer: Observer | null = null

export const currentObserver = (): Observer | null => observer

/** Runs `fn`, observed. */
export function observing<T>(by: Observer, fn: () => T): T {
  const before = observer
  observer = by
  try {
    return fn()
  } finally {
    observer = before
  }
}

let recorder: Recorder | null = null

/** The step that is being captured, or null. */
export const currentRecorder = (): Recorder | null => recorder

/** Runs `fn` while `current` records it. */
export function recordWith<T>(current: Recorder, fn: () => T): T {
  recorder = current
  try {
    return fn()
  } finally {
    recorder = null
  }
}

let undo: (() => void)[] | null = null

/** Whether ops are recorded for an asynchronous call. */
export const isAsync = (): boolean => undo !== null

/** Whether code may wait for values: not during capture and in an asynchronous call. */
export const mayWait = (): boolean => recorder === null && undo === null

/** Runs `fn` as an asynchronous call, whose ops run later. `restores` receives what {@link onFailure} is told. */
export function asyncWith<T>(restores: (() => void)[], fn: () => T): T {
  undo = restores
  try {
    return fn()
  } finally {
    undo = null
  }
}

/** In an asynchronous call: if one of its ops fails, `restore` undoes what JavaScript has counted or set. */
export const onFailure = (restore: () => void): void => void undo?.push(restore)

/** Throws during capture: `op` would not be part of a replay. */
export function refuseInCapture(op: string, why: string): void {
  if (!recorder) return
  throw new MoeError('UNSUPPORTED', op, `${why}, which a captured step cannot do: call it outside the step`)
}

/** Throws in an asynchronous call. */
export function refuseInAsync(op: string, text: string): void {
  if (isAsync()) throw new MoeError('UNSUPPORTED', op, text)
}

/** Throws during capture and in an asynchronous call, for an `op` that waits for values. */
export function refuseToWait(op: string, why = 'it waits for the device'): void {
  refuseInCapture(op, why)
  refuseInAsync(op, `${why}, which an asynchronous call cannot do: call it after the call`)
}
