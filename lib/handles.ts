import { type Handle, native } from './native.js'

/** Bare handles: whoever has one owns it. These functions give what they promise, or throw and leave nothing. */

/** Another owner. */
export function share(handle: Handle): Handle {
  native.retain(handle)
  return handle
}

export function releaseAll(handles: readonly (Handle | null)[]): void {
  for (const handle of handles) if (handle !== null) native.release(handle)
}

/** What `make` gives for each entry. */
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

/** A new handle, after `fill` has written what it holds. */
export function filled(handle: Handle, fill: (handle: Handle) => void): Handle {
  try {
    fill(handle)
    return handle
  } catch (error) {
    native.release(handle)
    throw error
  }
}

/** What `use` gives; releases the handle. */
export function consumed(handle: Handle, use: (handle: Handle) => Handle): Handle {
  try {
    return use(handle)
  } finally {
    native.release(handle)
  }
}
