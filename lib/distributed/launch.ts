import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { constants } from 'node:os'
import type { Duplex } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { checkFunction, checkPath, copyArray, fail, isPlain } from '../runtime/check.js'
import { MoeError, show } from '../runtime/errors.js'
import { integer, number, type OptionsOf, optional, reader } from '../runtime/options.js'
import { forEachLine } from './lines.js'
import { PmiServer } from './pmi.js'
import { removeSharedMemory } from './shared-memory.js'

/** A line that a process of a job printed. */
export interface JobLine {
  /** The rank of the process; null for a message of the launcher. */
  readonly rank: number | null
  /** Where it was printed. */
  readonly stream: 'stdout' | 'stderr'
  /** The line, without its end. */
  readonly text: string
}

/** How a process ended. */
export interface RankEnd {
  /** Its exit code; null if a signal ended it. */
  readonly code: number | null
  /** The signal that ended it. */
  readonly signal: string | null
}

/** How a job ended. */
export interface JobEnd {
  /** 0 if all processes ended with 0; else the code of the first that did not, or 128 plus the number of its signal. */
  readonly exitCode: number
  /** How each process ended, by rank. */
  readonly ranks: readonly RankEnd[]
}

/** A running job of {@link launch}. */
export interface Job {
  /** The process ids, by rank; 0 if it could not be started. */
  readonly pids: readonly number[]
  /** Resolves when all processes have ended. Rejects with FILE_SYSTEM if the program cannot be started. */
  readonly ended: Promise<JobEnd>
  /**
   * Sends a signal, by default SIGTERM, to all processes that still run. When the first of them ends, the others get the
   * job's `grace`. Errors: OPTION for an unknown signal.
   */
  kill(signal?: string): void
}

const declared = {
  /** The number of processes, R. */
  processes: integer({ min: 1, max: 1024 }),
  /** Milliseconds from the first failure until the other processes get SIGTERM; SIGKILL follows after at most 2 seconds. Default 3000. */
  grace: number({ min: 0, max: 2 ** 31 - 1, default: 3000 }),
  /** Environment variables, in addition to those of this process. */
  env: optional<Readonly<Record<string, string>>>({ check: checkEnvironment }),
  /** The working folder, by default that of this process. */
  cwd: optional<string>({ check: (op, _, value) => checkPath(op, value) }),
  /** Receives each line of output. By default it is printed with its rank in front. */
  onLine: optional<(line: JobLine) => void>({ check: checkCallback }),
}
const readOptions = reader(declared)

/** The options of {@link launch}. */
export type LaunchOptions = OptionsOf<typeof declared>

/**
 * Starts a program as the R processes of one MPI job on this machine; `initProcessGroup` connects them. It replaces
 * `mpiexec` for MPICH and Intel MPI, whose libraries find it through version 1 of their process management interface.
 *
 * Rank 0 reads the standard input of this process. Each process leads a process group, which `kill` signals and which is
 * ended with its leader, so that no child of a rank is left. If a process fails, the others have `grace` milliseconds to
 * notice. If this process exits, its jobs get SIGKILL.
 *
 * Errors: OPTION; UNSUPPORTED on Windows, where there are no process groups in this version.
 *
 * @example
 * ```ts
 * const job = launch(process.execPath, ['--eval', 'console.log(process.env.PMI_RANK)'], {
 *   processes: 2,
 *   onLine: ({ rank, text }) => console.assert(String(rank) === text),
 * })
 * console.log((await job.ended).exitCode) // → 0
 * ```
 */
export function launch(program: string, args: readonly string[], options: LaunchOptions): Job {
  const op = 'launch'
  const given = checkText(op, 'program', program)
  if (given === '') fail('OPTION', op, 'program must be the name of a program, got ""')
  const list = copyArray(op, 'args', args, 100_000).map((arg, i) => checkText(op, `args[${i}]`, arg))
  const values = readOptions(op, options)
  if (process.platform === 'win32')
    fail('UNSUPPORTED', op, 'process groups are not available on Windows in this version')
  return new RunningJob(given, list, values)
}

function checkText(op: string, name: string, value: unknown): string {
  if (typeof value === 'string' && !value.includes('\0')) return value
  return fail('OPTION', op, `${name} must be a string without zero bytes, got ${show(value)}`)
}

function checkEnvironment(op: string, name: string, value: unknown): Readonly<Record<string, string>> {
  if (typeof value !== 'object' || value === null || !isPlain(value))
    return fail('OPTION', op, `${name} must be a plain object, got ${show(value)}`)
  return Object.fromEntries(Object.entries(value).map(([key, text]) => [key, checkText(op, `${name}.${key}`, text)]))
}

function checkCallback(op: string, name: string, value: unknown): (line: JobLine) => void {
  checkFunction(op, name, value)
  return value as (line: JobLine) => void
}

/** Variables by which a process finds another launcher. */
const ofLaunchers = /^(PMI_|PMI2_|PMIX_|HYDRA_|OMPI_|MPI_LOCAL)/

/** Why a job is given up: its error, or that of a callback. */
interface Failure {
  readonly error: unknown
}

/**
 * How long streams may stay open after the last process, because one that left its process group may hold them: so many
 * waits of so many milliseconds. A single wait could end before a busy program has read what lies in them.
 */
const streamWaits = 10
const streamWait = 100

class RunningJob implements Job {
  readonly pids: readonly number[]
  readonly ended: Promise<JobEnd>
  readonly #children: ChildProcess[]
  readonly #running = new Set<number>()
  readonly #ranks: RankEnd[]
  readonly #name: string
  readonly #pmi: PmiServer
  readonly #grace: number
  readonly #onLine: (line: JobLine) => void
  #exitCode = 0
  #stopping: AbortController | null = null
  #isEnding = false
  #finish!: (error: Failure | null) => void

  constructor(program: string, args: readonly string[], options: ReturnType<typeof readOptions>) {
    const { processes, grace, env, cwd, onLine } = options
    this.#grace = grace
    this.#onLine = onLine ?? printer(processes)
    this.#ranks = Array.from({ length: processes }, () => ({ code: null, signal: null }))
    this.#name = `st-moe-${process.pid}-${randomBytes(6).toString('hex')}`
    this.#pmi = new PmiServer(this.#name, processes, {
      onAbort: (rank, code, reason) => this.#end(code, `rank ${rank} called MPI_Abort ${reason}`.trimEnd()),
      onViolation: (rank, reason) => this.#end(1, `rank ${rank} sent ${reason}`),
      onDeadlock: (rank) => this.#fail(1, `rank ${rank} has ended, and others wait for it in MPI_Init or MPI_Finalize`),
    })
    const inherited = Object.entries(process.env).filter(([name]) => !ofLaunchers.test(name))
    const common = { ...Object.fromEntries(inherited), ...env }
    const start = (rank: number) =>
      spawn(program, args, {
        cwd,
        detached: true, // leads a process group
        stdio: [rank === 0 ? 'inherit' : 'ignore', 'pipe', 'pipe', 'pipe', 'pipe'],
        env: { ...common, ...variablesOf(rank, processes) },
      })
    this.#children = Array.from({ length: processes }, (_, rank) => start(rank))
    this.pids = this.#children.map(({ pid }) => pid ?? 0)
    this.ended = this.#watch(program)
  }

  kill(signal = 'SIGTERM'): void {
    if (!Object.hasOwn(constants.signals, signal))
      fail('OPTION', 'Job.kill', `signal must be the name of a signal, got ${show(signal)}`)
    this.#stopping ??= new AbortController()
    this.#signal(signal)
  }

  async #watch(program: string): Promise<JobEnd> {
    const finished = new Promise<Failure | null>((resolve) => {
      this.#finish = resolve
    })
    const killAll = (): void => this.#signal('SIGKILL')
    process.on('exit', killAll)
    let isOpen = true
    const closed = Promise.all(this.#children.map((child) => once(child, 'close').catch(() => {}))).then(() => {
      isOpen = false
    })
    for (const [rank, child] of this.#children.entries()) this.#attend(rank, child, program)
    const failure = await finished
    process.removeListener('exit', killAll)
    this.#stopping?.abort()
    for (let i = 0; isOpen && i < streamWaits; i++) await Promise.race([closed, delay(streamWait)])
    for (const child of this.#children) for (const stream of child.stdio) stream?.destroy()
    removeSharedMemory(this.#name, this.#pmi.values)
    if (failure) throw failure.error
    return { exitCode: this.#exitCode, ranks: this.#ranks }
  }

  #attend(rank: number, child: ChildProcess, program: string): void {
    this.#running.add(rank)
    forEachLine(child.stdout!, (text) => this.#print({ rank, stream: 'stdout', text }))
    forEachLine(child.stderr!, (text) => this.#print({ rank, stream: 'stderr', text }))
    this.#pmi.connect(rank, child.stdio[3] as Duplex)
    endsTo(child)
      .on('error', () => {})
      .resume() // it has ended
    child.on('error', (cause) => {
      this.#signal('SIGKILL')
      const text = `cannot start ${show(program)}: ${cause.message}`
      this.#finish({ error: new MoeError('FILE_SYSTEM', 'launch', text, { cause }) })
    })
    child.on('exit', (code, signal) => {
      signalGroup(child, 'SIGKILL') // what it has left
      this.#running.delete(rank)
      this.#ranks[rank] = { code, signal }
      for (const other of this.#running) endsTo(this.#children[other]).write(endOf(rank))
      if (code !== 0) {
        const how = signal ? `was ended by ${signal}` : `ended with code ${code}`
        this.#fail(signal ? 128 + constants.signals[signal] : code!, `rank ${rank} (process ${child.pid}) ${how}`)
      } else if (this.#stopping) this.#endAfterGrace()
      this.#pmi.end(rank)
      if (this.#running.size === 0) this.#finish(null)
    })
  }

  #print(line: JobLine): void {
    try {
      this.#onLine(line)
    } catch (error) {
      this.#signal('SIGKILL')
      this.#finish({ error })
    }
  }

  /** The first failure of the job. */
  #fail(exitCode: number, text: string): void {
    if (this.#exitCode === 0) {
      this.#exitCode = exitCode
      this.#print({ rank: null, stream: 'stderr', text })
    }
    this.#endAfterGrace()
  }

  /** Ends the job at once. */
  #end(exitCode: number, text: string): void {
    this.#fail(exitCode, text)
    this.#signal('SIGKILL')
  }

  #endAfterGrace(): void {
    if (this.#running.size === 0 || this.#isEnding) return
    this.#isEnding = true
    this.#stopping ??= new AbortController()
    const { signal } = this.#stopping
    const steps = async (): Promise<void> => {
      await delay(this.#grace, null, { signal })
      this.#signal('SIGTERM')
      await delay(Math.min(this.#grace, 2000), null, { signal })
      this.#signal('SIGKILL') // also ends stopped processes
    }
    steps().catch(() => {}) // all have ended
  }

  #signal(name: string): void {
    for (const rank of this.#running) signalGroup(this.#children[rank], name)
  }
}

/**
 * What the launcher tells a process. Descriptor 3 is its socket; to 4 the launcher writes the rank of each process that ends,
 * which nobody else can tell before the watch of the processes has begun.
 */
const variablesOf = (rank: number, size: number): Record<string, string> => ({
  PMI_FD: '3',
  ST_MOE_ENDED_FD: '4',
  PMI_RANK: String(rank),
  PMI_SIZE: String(size),
  MPI_LOCALRANKID: String(rank),
  MPI_LOCALNRANKS: String(size),
})

/** Where a process reads of those that end, each an i32. */
const endsTo = ({ stdio }: ChildProcess): Duplex => stdio[4] as Duplex
const endOf = (rank: number): Uint8Array => new Uint8Array(Int32Array.of(rank).buffer)

function signalGroup({ pid }: ChildProcess, signal: string): void {
  try {
    if (pid !== undefined) process.kill(-pid, signal)
  } catch {} // it has ended
}

/** Prints lines as `[rank] text`. */
function printer(size: number): (line: JobLine) => void {
  const width = String(size - 1).length
  return ({ rank, stream, text }) => {
    const label = rank === null ? 'launch:' : `[${String(rank).padStart(width)}]`
    process[stream].write(`${label} ${text}\n`)
  }
}
