import { type Handle, native } from '../runtime/native.js'

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
  return guarded(handles, () => {
    for (const [i, entry] of entries.entries()) handles.push(make(entry, i))
    return handles
  })
}

/** Returns a new handle after `fill` has written its values. */
export function filled(handle: Handle, fill: (handle: Handle) => void): Handle {
  return guarded([handle], () => {
    fill(handle)
    return handle
  })
}

/** Returns `use(handle)` and releases the handle. */
export function consumed(handle: Handle, use: (handle: Handle) => Handle): Handle {
  try {
    return use(handle)
  } finally {
    native.release(handle)
  }
}

/** Returns `use()`. If that throws, releases the handles. */
export function guarded<T>(handles: readonly (Handle | null)[], use: () => T): T {
  try {
    return use()
  } catch (error) {
    releaseAll(handles)
    throw error
  }
}
