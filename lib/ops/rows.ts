import { handlesOf, releaseAll } from '../handles.js'
import { type Handle, native } from '../native.js'

/** Calls `f` on views of other shapes; they share memory and live only during the call. */
export function withViews<T>(
  handles: readonly Handle[],
  shapes: readonly (readonly number[])[],
  f: (views: Handle[]) => T,
): T {
  const views = handlesOf(handles, (handle, i) => native.reshape(handle, shapes[i]))
  try {
    return f(views)
  } finally {
    releaseAll(views)
  }
}

/**
 * The same memory under another shape; takes over x. Needs no memory if nobody else holds x, so the new handles of an
 * op can be reshaped one after another.
 */
export function reshaped(x: Handle, shape: readonly number[]): Handle {
  try {
    return native.reshapeOwned(x, shape)
  } catch (error) {
    native.release(x)
    throw error
  }
}
