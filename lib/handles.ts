import { type Handle, native } from './native.js'

/** Bare handles, owned by whoever holds them. If one of these functions throws, it releases what it created. */

/** Adds an owner. */
export function share(handle: Handle): Handle {
  native.retain(handle)
  return handle
}

export function releaseAll(handles: readonly (Handle | null)[]): void {
  for (const handle of handles) if (handle !== null) native.release(handle)
}

/** The handle that `make` returns for each entry. */
export function handlesOf<T, H extends Handle | null>(entries: readonly T[], make: (entry: T, i: number) => H): H[] {
  const handles: H[] = []
  try {
    for (const [i, entry] of entries.entries()) handles.push(make(entry, i))
    return handles
  } catch (error) {
    releaseAll(handles)
    throw error
  }
}

/** Returns a new handle after `fill` has written its values. */
export function filled(handle: Handle, fill: (handle: Handle) => void): Handle {
  try {
    fill(handle)
    return handle
  } catch (error) {
    native.release(handle)
    throw error
  }
}

/** Returns `use(handle)` and releases the handle. */
export function consumed(handle: Handle, use: (handle: Handle) => Handle): Handle {
  try {
    return use(handle)
  } finally {
    native.release(handle)
  }
}
