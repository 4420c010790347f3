import { sizeOf } from '../runtime/check.js'
import { type Handle, native } from '../runtime/native.js'
import { handlesOf, releaseAll } from '../tensor/handles.js'

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

/** A shape as [outer, axis, inner], where the axis is those from `start` to `end`, exclusive. */
export const splitAt = (
  shape: readonly number[],
  start: number,
  end = start + 1,
): [outer: number, axis: number, inner: number] => [
  sizeOf(shape.slice(0, start)),
  sizeOf(shape.slice(start, end)),
  sizeOf(shape.slice(end)),
]

/** The gradient of x, of shape `shape` with `A` entries along an axis, of which y has those at `index`; both as `split`. */
export const gatherGradient = (
  dy: Handle,
  index: Handle,
  split: readonly number[],
  A: number,
  shape: readonly number[],
): Handle =>
  reshaped(
    withViews([dy, index], [split, split], ([dy, index]) => native.gatherBackward({ dy, index, A })),
    shape,
  )
