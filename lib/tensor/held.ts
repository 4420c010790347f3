import type { Node } from '../autograd/autograd.js'
import { type Handle, native } from '../runtime/native.js'
import { Alive } from '../runtime/warn.js'

/** What a tensor holds, apart from the Tensor itself: its finalizer needs it. */
export interface Held {
  handle: Handle // 0 when disposed
  beside: readonly Handle[]
  source: { node: Node; output: number } | null
  temporary: boolean // not a parameter, gradient, kept tensor or one of a file or state dict
  guarded: boolean // by a finalizer
}

/** Those of files and state dicts, of which there may be more, do not count. */
const temporaries = new Alive(
  100_000,
  'more than 100,000 tensors are alive that are neither parameters, gradients nor kept. If a loop makes them, wrap its step ' +
    'in scope(() => …), which frees them; docs/memory.md says more.',
)

const noHandles: readonly Handle[] = Object.freeze([])

export function newHeld(handle: Handle): Held {
  temporaries.add()
  return { handle, beside: noHandles, source: null, temporary: true, guarded: false }
}

export function lasting(held: Held): void {
  if (!held.temporary) return
  held.temporary = false
  temporaries.remove()
}

export function letGo(held: Held): void {
  if (held.handle === 0) return
  lasting(held)
  native.release(held.handle)
  for (const handle of held.beside) native.release(handle)
  held.beside = noHandles
  held.handle = 0
  held.source?.node.release()
  held.source = null
}

/**
 * Only a safety net: in a synchronous loop finalizers do not run. A tensor in a scope that is sure to end needs none,
 * and one costs as much as a small op.
 */
const finalizers = new FinalizationRegistry<Held>(letGo)

/** From now on a finalizer frees it once `tensor` is unreachable. */
export function guardHeld(tensor: object, held: Held): void {
  if (held.guarded) return
  held.guarded = true
  finalizers.register(tensor, held, held)
}

export function unguard(held: Held): void {
  if (held.guarded) finalizers.unregister(held)
}
