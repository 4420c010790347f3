import { totalmem } from 'node:os'
import { Failure } from './errors.js'

/** Refuses what needs more memory than there is; the system would kill the process. `sizes`: the flags it comes from. */
export function checkMemory(what: string, bytes: number, sizes: Record<string, number>): void {
  const allowed = process.constrainedMemory?.() || Number.POSITIVE_INFINITY
  const present = Math.min(totalmem(), allowed)
  if (bytes <= present) return
  const gigabytes = (n: number): string => `${(n / 1e9).toPrecision(3)} GB`
  throw new Failure(
    `${what} at this size needs at least ${gigabytes(bytes)} of memory, there are ${gigabytes(present)}: ${asFlags(sizes)}`,
  )
}

/** Sizes as they stand on a command line. */
export const asFlags = (sizes: Record<string, number>): string =>
  Object.entries(sizes)
    .map(([name, value]) => `--${name} ${value}`)
    .join(' ')
