import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, type TestContext } from 'vitest'
import { launch, MoeError } from '../../lib/index.js'
import { mpiFor } from './mpi.js'

/** Waits until processes have ended: a signal, even SIGKILL, takes effect when the system next runs its process. */
export const expectEnded = (pids: Iterable<number>) =>
  expect.poll(() => [...pids].filter(isAlive), { timeout: 10_000, interval: 5 }).toEqual([])

/** Whether a process runs. One that has ended does not, whether or not its parent has noticed. */
function isAlive(pid: number): boolean {
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

/** Runs a program of test/children as a job. What each rank printed, line by line, and how the job ended. */
export async function runRanks(
  context: object,
  library: 'mpich' | 'impi',
  child: string,
  processes: number,
  ...args: readonly (string | number)[]
) {
  // biome-ignore lint/suspicious/noExplicitAny: lines of JSON
  const answers: Record<string, any>[][] = Array.from({ length: processes }, () => [])
  const errors: string[] = []
  const file = fileURLToPath(new URL(`../children/${child}`, import.meta.url))
  const job = launch(process.execPath, [file, ...args.map(String)], {
    processes,
    grace: 2000, // on a busy machine the others need a while to notice and tell
    env: { ST_MOE_MPI_LIBRARY: mpiFor(context as TestContext, library).library },
    onLine({ rank, stream, text }) {
      if (rank !== null && stream === 'stdout') answers[rank].push(JSON.parse(text))
      else errors.push(text)
    },
  })
  const end = await job.ended
  await expectEnded(job.pids)
  return { ...end, answers, errors, job }
}
