import { ones, scope } from '../../lib/index.js'

/** Calls `fn`, and on a card waits for what its kernels report: an index out of range, an error at once on the CPU. */
export function settled<T>(fn: () => T): T {
  const value = fn()
  scope(() => {
    ones([1]).item()
  })
  return value
}
