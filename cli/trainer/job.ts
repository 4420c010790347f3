import { initProcessGroup, type JobLine, launch, type ProcessGroup, processBackends } from '../../lib/index.js'
import { asFailure, Failure, UsageError } from '../errors.js'
import { passOn } from '../launch.js'

/** Training in several processes: the command starts itself once more for each. */

/** How long a process waits for the first one, which may evaluate a model on a long text: 12 hours, in milliseconds. */
const timeout = 12 * 3_600_000

/** Whether a launcher has started this process. */
export const isInJob = (): boolean => process.env.PMI_RANK !== undefined

/** The group of this process. */
export function joinJob(processes: number): ProcessGroup {
  try {
    const group = initProcessGroup({ timeout })
    if (group.size !== processes)
      throw new UsageError(`the launcher has started ${group.size} processes, --processes is ${processes}`)
    return group
  } catch (error) {
    throw asFailure(error)
  }
}

/**
 * Runs this command in that many processes; returns its exit code. The first prints. What the others and the launcher have to
 * say is printed at the end, if the first process has not told its own error.
 */
export async function trainInJob(processes: number): Promise<number> {
  try {
    const [mpi] = processBackends()
    if (!mpi.available) {
      const places = mpi.reason!.replaceAll('\n', '; ')
      throw new Failure(`--processes needs an MPI library: ${mpi.install}. Tried: ${places}`)
    }
    const others: string[] = []
    const onLine = ({ rank, stream, text }: JobLine) => {
      if (rank === 0) process[stream].write(`${text}\n`)
      else others.push(rank === null ? text : `process ${rank}: ${text}`)
    }
    const args = [...process.execArgv, ...process.argv.slice(1)]
    const job = launch(process.execPath, args, { processes, onLine })
    passOn(job)
    const { exitCode, ranks } = await job.ended
    if (exitCode !== 0 && ranks[0].code !== exitCode) for (const text of others) process.stderr.write(`${text}\n`)
    return exitCode
  } catch (error) {
    throw asFailure(error)
  }
}
