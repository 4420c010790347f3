import { readFileSync } from 'node:fs'
import { MoeError } from '../../lib/index.js'

/** Whether a process runs. One that has ended does not, whether or not its parent has noticed. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return process.platform !== 'linux' || !/^\d+ \(.*\) [ZX]/s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

/** The code of the error that a function throws. */
export function codeOf(fn: () => unknown): string | null {
  try {
    fn()
    return null
  } catch (error) {
    return error instanceof MoeError ? error.code : String(error)
  }
}
