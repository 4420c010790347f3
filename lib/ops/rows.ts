import { sizeOf } from '../check.js'
import { type Handle, native } from '../native.js'

/** [T, D] of a tensor [..., D]. */
export const rowsOf = (shape: readonly number[]): [T: number, D: number] => [
  sizeOf(shape.slice(0, -1)),
  shape[shape.length - 1],
]

/** Calls `f` on views of other shapes; they share memory and live only during the call. */
export function withViews<T>(
  handles: readonly Handle[],
  shapes: readonly (readonly number[])[],
  f: (views: Handle[]) => T,
): T {
  const views: Handle[] = []
  try {
    for (const [i, handle] of handles.entries()) views.push(native.reshape(handle, shapes[i]))
    return f(views)
  } finally {
    for (const view of views) native.release(view)
  }
}

/** The same memory under another shape; releases x. */
export function reshaped(x: Handle, shape: readonly number[]): Handle {
  try {
    return native.reshape(x, shape)
  } finally {
    native.release(x)
  }
}
