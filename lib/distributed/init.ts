import { isMainThread, threadId } from 'node:worker_threads'
import { fail } from '../runtime/check.js'
import { shareThreads } from '../runtime/device.js'
import { show, within } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { boolean, number, type OptionsOf, oneOf, optional, reader } from '../runtime/options.js'
import { groupOfAll, type ProcessGroup } from '../runtime/process-group.js'
import { findLibrary, installCommand } from './libraries.js'

const declared = {
  /** What connects the processes: 'mpi', through the standard ABI of MPI 5.0. Default 'mpi'. */
  backend: oneOf(['mpi'], { default: 'mpi' }),
  /** The MPI library: a file, or a name that the system's loader finds. By default it is searched. */
  library: optional<string>({ check: checkLibrary }),
  /** Milliseconds after which an operation that not all ranks have entered fails. Default 600_000. */
  timeout: number({ min: 1, max: 1e9, default: 600_000 }),
  /** Compares each call between the ranks before it runs: a difference is a PROCESS_GROUP error, not a TIMEOUT. Default false. */
  debug: boolean({ default: false }),
}
const readOptions = reader(declared)

/** The options of {@link initProcessGroup}. */
export type ProcessGroupOptions = OptionsOf<typeof declared>

/** A backend of process groups, whether it can be used, and otherwise the stage and reason of the failure. */
export interface ProcessBackendInfo {
  /** Its name in the option `backend`. */
  backend: 'mpi'
  /** Whether a library was found that can be used. */
  available: boolean
  /** The file of the library, or its name for the loader. */
  library?: string
  /** What the library says of itself. */
  version?: string
  /** The stage that failed. */
  stage?: 'library'
  /** The reason, for people: the places that were tried, one a line. */
  reason?: string
  /** The commands that install a library. */
  install?: string
}

function checkLibrary(op: string, name: string, value: unknown): string {
  if (typeof value === 'string' && value !== '' && !value.includes('\0')) return value
  return fail('OPTION', op, `${name} must be the name of a file, got ${show(value)}`)
}

/** The group of this environment, until it is destroyed. */
let current: ProcessGroup | null = null

/**
 * Connects this process with the others of its job, which `st-moe launch`, the `mpiexec` of the MPI library or Slurm has
 * started, and returns the group of all. All ranks call it. Without a launcher it returns a group of one rank, and opens no
 * library.
 *
 * The library is the one that `library` or the environment variable ST_MOE_MPI_LIBRARY names; else it is searched in the
 * package `@st-moe/mpich-<platform>`, in the loader's path and in the active Python environment. The CPUs of a machine are
 * divided between its ranks, unless `setNumThreads` was called before.
 *
 * Errors: OPTION for a wrong option or a second group; BACKEND_UNAVAILABLE without a library, with all places that were
 * tried, or if library and launcher do not fit; UNSUPPORTED if another thread of this process has the group; TIMEOUT if
 * not all ranks come; PROCESS_GROUP if their options differ.
 *
 * @example
 * ```ts
 * const group = initProcessGroup({ timeout: 60_000 })
 * console.log(group.rank, group.size, group.localSize) // → 0 1 1
 * group.destroy()
 * ```
 */
export function initProcessGroup(options: ProcessGroupOptions = {}): ProcessGroup {
  const op = 'initProcessGroup'
  const { library, timeout, debug } = readOptions(op, options)
  if (current) fail('OPTION', op, 'this process has a process group: destroy() ends it')
  const job = {
    timeout,
    destroyed: false,
    onDestroy: () => {
      current = null
    },
  }
  const expected = announcedSize()
  if (expected === 1) {
    current = groupOfAll([0], 0, job, 0)
    return current
  }
  const found = findLibrary(library)
  if ('tried' in found) fail('BACKEND_UNAVAILABLE', op, textOf(found.tried))
  const thread = isMainThread ? 'the main thread' : `worker ${threadId}`
  const call = `initProcessGroup({ timeout: ${timeout}, debug: ${debug} })`
  const started = within(op, () => native.startProcessGroup(found.path, timeout / 1000, expected, thread, call, debug))
  current = groupOfAll(started.hosts, started.rank, job, started.group)
  shareThreads(current.localSize)
  return current
}

const textOf = (tried: readonly string[]): string =>
  [
    'no MPI library with the standard ABI of MPI 5.0 can be used.',
    'Tried:',
    ...tried.map((line) => `  ${line}`),
    `To install one, run: ${installCommand}`,
  ].join('\n')

/** The number of processes that a launcher has started: 1 without one, 0 if it does not say. */
function announcedSize(): number {
  const { PMI_SIZE, OMPI_COMM_WORLD_SIZE, PMI_FD, PMI_PORT, PMIX_RANK, SLURM_STEP_NUM_TASKS } = process.env
  const isLaunched = [PMI_SIZE, OMPI_COMM_WORLD_SIZE, PMI_FD, PMI_PORT, PMIX_RANK].some((value) => value !== undefined)
  if (!isLaunched) return 1
  const size = Number(PMI_SIZE ?? OMPI_COMM_WORLD_SIZE ?? SLURM_STEP_NUM_TASKS)
  return Number.isSafeInteger(size) && size > 0 && size < 2 ** 24 ? size : 0
}

/**
 * What can connect processes here. It opens the library, but does not connect. Errors: only BACKEND_UNAVAILABLE, if the
 * addon itself cannot be loaded.
 *
 * @example
 * ```ts
 * const [mpi] = processBackends()
 * console.log(mpi.backend, mpi.available ? 'works' : 'needs a library') // → mpi …
 * ```
 */
export function processBackends(): ProcessBackendInfo[] {
  const found = findLibrary()
  if ('tried' in found) {
    const reason = found.tried.join('\n')
    return [{ backend: 'mpi', available: false, stage: 'library', reason, install: installCommand }]
  }
  return [{ backend: 'mpi', available: true, library: found.path, version: found.version }]
}
