import { expect } from 'vitest'
import { ones, scope } from '../../lib/index.js'

/** Calls `fn`, and on a GPU waits for the device error flag: an index out of range, which throws at once on the CPU. */
export function settled<T>(fn: () => T): T {
  const value = fn()
  scope(() => {
    ones([1]).item()
  })
  return value
}

/** The error of `fn`; fails if it does not throw. */
export function thrownBy(fn: () => unknown): unknown {
  try {
    fn()
  } catch (error) {
    return error
  }
  return expect.unreachable('nothing was thrown')
}
