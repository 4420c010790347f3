import { setTimeout } from 'node:timers'

/** What is needed of the addon. */
interface Memory {
  release(handle: number): void
  trimIdle(device: number): number
}

const cpu = 0
/** Milliseconds from the first release to the first look. */
const firstPause = 2000

/**
 * From now on the memory of the CPU that is cached for reuse goes back to the system some seconds after its last use. A
 * timer runs while there is some; it keeps no process alive, and ends when all is given back.
 */
export function trimWhenIdle(native: Memory): void {
  const { release } = native
  let waits = false
  const wait = (milliseconds: number): void => {
    waits = milliseconds > 0
    if (waits) setTimeout(() => wait(native.trimIdle(cpu)), milliseconds).unref()
  }
  native.release = (handle) => {
    release(handle)
    if (!waits) wait(firstPause)
  }
}
