import { type Job, type JobLine, launch } from '../lib/index.js'
import { command } from './command.js'
import { asFailure, UsageError } from './errors.js'
import { number, toggle } from './flags.js'
import { jsonLine, onClosedPipe } from './output.js'

/** Milliseconds in which one key press may arrive several times. */
const sameKeyPress = 500

/** `st-moe launch` */
export const launchCommand = command({
  program: 'st-moe launch',
  summary: 'Starts a program as several processes of one MPI job on this machine.',
  positional: 'PROGRAM [ARGUMENT…]',
  isProgram: true,
  flags: {
    processes: number({ help: 'number of processes', default: 1, min: 1, max: 1024, letter: 'n' }),
    grace: number({
      help: 'seconds from a failure until the others are ended',
      default: 3,
      min: 0,
      max: 86_400,
      real: true,
    }),
    json: toggle('print each line of output as a line of JSON'),
  },
  examples: [
    ['st-moe launch -n 4 node train.js', 'four processes; initProcessGroup in train.js connects them'],
    ['st-moe launch -n 2 --json node train.js --steps 10', 'for programs; --steps is an argument of train.js'],
  ],
  notes: `Each line of output has the rank of its process in front. Ctrl-C, SIGTERM and SIGHUP are passed on; a second one,
half a second later or more, ends all processes at once. If a process fails, the others have the seconds of
--grace to notice, and are then ended. The exit code is 0 if all processes end with 0, else that of the first
that does not, or 128 plus the number of its signal.`,
  async run({ values: { processes, grace, json }, positionals: [program, ...args] }) {
    if (program === undefined) throw new UsageError('missing PROGRAM')
    const onLine = json ? (printed: JobLine) => jsonLine(printed) : undefined
    const job = launch(program, args, { processes, grace: grace * 1000, onLine })
    passOn(job)
    try {
      const { exitCode } = await job.ended
      return exitCode
    } catch (error) {
      throw asFailure(error)
    }
  },
})

/** Passes signals on to a job; a second one ends it at once. */
export function passOn(job: Job): void {
  let since: number | null = null
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'])
    process.on(name, () => {
      const isSecond = since !== null && performance.now() - since > sameKeyPress
      since ??= performance.now()
      job.kill(isSecond ? 'SIGKILL' : name)
    })
  onClosedPipe(() => job.kill())
}
