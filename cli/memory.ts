import { availableMemory } from '../language-model/index.js'
import { Failure } from './errors.js'

/**
 * Throws if `bytes` exceed the memory of the machine, before the system kills the process. `sizes`: the flags to blame.
 */
export function checkMemory(what: string, bytes: number, sizes: Record<string, number>): void {
  const present = availableMemory()
  if (bytes <= present) return
  const gigabytes = (n: number): string => `${Number((n / 1e9).toPrecision(3))} GB`
  throw new Failure(
    `${what} at this size needs at least ${gigabytes(bytes)} of memory, ${gigabytes(present)} are available: ${asFlags(sizes)}`,
  )
}

/** Sizes as command line flags. */
export const asFlags = (sizes: Record<string, number>): string =>
  Object.entries(sizes)
    .map(([name, value]) => `--${name} ${value}`)
    .join(' ')
