import { AsyncLocalStorage } from 'node:async_hooks'
import { MoeError } from './errors.js'
import type { Recorder } from './recorder.js'
import type { Scope } from './scope.js'
import type { Tensor } from './tensor.js'

/** What surrounds a piece of code. Follows `await`. */
interface Surroundings {
  /** The innermost. */
  readonly scope: Scope | null
  /** Whether operations are recorded. */
  readonly gradEnabled: boolean
  /** Tensors that the innermost `allOrNone` has made and no scope frees; null outside of it. */
  readonly lasting: Set<Tensor> | null
}

const storage = new AsyncLocalStorage<Surroundings>()
const outside: Surroundings = { scope: null, gradEnabled: true, lasting: null }
const surroundings = (): Surroundings => storage.getStore() ?? outside

export const currentScope = (): Scope | null => surroundings().scope
export const isGradEnabled = (): boolean => surroundings().gradEnabled
export const currentLasting = (): Set<Tensor> | null => surroundings().lasting

/** Runs `fn` with some of its surroundings changed. */
export const within = <T>(change: Partial<Surroundings>, fn: () => T): T =>
  storage.run({ ...surroundings(), ...change }, fn)

let recorder: Recorder | null = null

/** The step that is being captured; null in ordinary running. */
export const currentRecorder = (): Recorder | null => recorder

/** Runs `fn` with what it does recorded. */
export function recordWith<T>(current: Recorder, fn: () => T): T {
  recorder = current
  try {
    return fn()
  } finally {
    recorder = null
  }
}

/** Throws where a step is being captured: `op` would not be part of a replay. */
export function refuseInCapture(op: string, why: string): void {
  if (recorder) throw new MoeError('UNSUPPORTED', op, `${why}, which a captured step cannot: do it outside of the step`)
}
