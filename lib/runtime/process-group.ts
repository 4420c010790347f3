import { checkInteger, copyArray, fail } from './check.js'
import { show, within } from './errors.js'
import { native } from './native.js'
import { integer, reader } from './options.js'

/** A group as its constructor takes it. */
interface Made {
  readonly rank: number
  /** The machine of each rank, as a number. */
  readonly hosts: readonly number[]
  readonly job: JobState
  /** That of the addon; 0 for a group of this process alone, which needs no library. */
  readonly handle: number
  /** Whether it has all ranks of the job. */
  readonly isWhole: boolean
}

/** What the groups of a job share. */
export interface JobState {
  readonly timeout: number
  /** Runs when the job is destroyed. */
  readonly onDestroy: () => void
  destroyed: boolean
}

/** The groups of {@link ProcessGroup.split}. */
export interface ParallelGroups {
  /** The ranks that share out the experts of a layer. */
  readonly expertParallel: ProcessGroup
  /** The ranks that hold the same experts. */
  readonly expertDataParallel: ProcessGroup
}

const splitOptions = { expertParallel: integer({ min: 1 }) }
const readSplit = reader(splitOptions)
const key = Symbol()

/** The number that the addon knows a group by. Errors: OPTION for what is no group, DISPOSED. */
export let groupHandle: (op: string, group: ProcessGroup, name?: string) => number

const maxRanks = 2 ** 20

/**
 * Processes that work together, each with a rank from 0. `initProcessGroup` returns the group of all.
 *
 * Its methods are collective: all ranks of the group call them, in the same order. After PEER_LOST (a process has ended),
 * TIMEOUT (not all ranks came within `timeout`) or PROCESS_GROUP (the ranks disagree, or the MPI library reports an
 * error) every later call on a group of this process throws that error: end the process.
 *
 * @example
 * ```ts
 * using group = initProcessGroup()
 * group.barrier()
 * console.log(`${group.rank} of ${group.size}`) // → 0 of 1
 * ```
 */
export class ProcessGroup {
  /** The rank of this process in the group. */
  readonly rank: number
  /** The number of ranks. */
  readonly size: number
  /** The rank of this process among those of the group on the same machine. */
  readonly localRank: number
  /** The number of ranks of the group on the same machine. */
  readonly localSize: number
  /** Milliseconds after which an operation that not all ranks have entered fails. */
  readonly timeout: number
  readonly #made: Made
  #destroyed = false

  /** @internal `initProcessGroup` makes groups. */
  constructor(permit: symbol, made: Made) {
    if (permit !== key) fail('OPTION', 'ProcessGroup', 'initProcessGroup makes process groups')
    const { rank, hosts, job } = made
    const onHost = hosts.flatMap((host, i) => (host === hosts[rank] ? [i] : []))
    this.rank = rank
    this.size = hosts.length
    this.localRank = onHost.indexOf(rank)
    this.localSize = onHost.length
    this.timeout = job.timeout
    this.#made = made
  }

  /**
   * Returns when all ranks have called it. It blocks this thread, timers and signal handlers included. Errors: PEER_LOST,
   * TIMEOUT, PROCESS_GROUP.
   */
  barrier(): void {
    this.#expectAlive('ProcessGroup.barrier')
    const { handle } = this.#made
    if (handle !== 0) within('ProcessGroup.barrier', () => native.processGroupBarrier(handle))
  }

  /**
   * A group of some ranks of this one, which get the ranks 0, 1, … in the order of `ranks`; null for a rank that is none of
   * them. All ranks of this group call it. Errors: OPTION unless `ranks` are different ranks of this group; PEER_LOST,
   * TIMEOUT; PROCESS_GROUP if the ranks pass different lists.
   *
   * @example
   * ```ts
   * using group = initProcessGroup()
   * console.log(group.newGroup([0])?.size) // → 1
   * ```
   */
  newGroup(ranks: readonly number[]): ProcessGroup | null {
    const op = 'ProcessGroup.newGroup'
    this.#expectAlive(op)
    const list = copyArray(op, 'ranks', ranks, maxRanks).map((rank, i) =>
      checkInteger(op, `ranks[${i}]`, rank, 0, this.size - 1),
    )
    if (list.length === 0) fail('OPTION', op, 'ranks must have at least one rank, got []')
    if (new Set(list).size < list.length) fail('OPTION', op, `ranks must be different, got ${show(list)}`)
    return this.#some('newGroup', list, `newGroup([${list.join(', ')}])`)
  }

  /**
   * Two partitions of this group for expert parallelism over n ranks: ranks k·n to k·n + n − 1 share out the experts, and
   * ranks with the same remainder hold the same experts. n must divide the size. All ranks call it. Errors: OPTION, and
   * those of `newGroup`.
   *
   * @example
   * ```ts
   * using group = initProcessGroup()
   * const { expertParallel, expertDataParallel } = group.split({ expertParallel: 1 })
   * console.log(expertParallel.size, expertDataParallel.size) // → 1 1
   * ```
   */
  split(options: { expertParallel: number }): ParallelGroups {
    const op = 'ProcessGroup.split'
    this.#expectAlive(op)
    const { expertParallel: n } = readSplit(op, options)
    if (this.size % n !== 0)
      fail('OPTION', op, `expertParallel must divide the size of the group, ${this.size}, got ${n}`)
    const call = `split({ expertParallel: ${n} })`
    const first = this.rank - (this.rank % n)
    const near = Array.from({ length: n }, (_, i) => first + i)
    const far = Array.from({ length: this.size / n }, (_, i) => i * n + (this.rank % n))
    return { expertParallel: this.#some('split', near, call)!, expertDataParallel: this.#some('split', far, call)! }
  }

  /**
   * Ends all groups of this process; all ranks of the job call it at the end of the program. A process that ends without it
   * counts as lost for the others. On a group of `newGroup` or `split` it ends only that group, without waiting. Errors:
   * PEER_LOST, TIMEOUT, PROCESS_GROUP; none if it was destroyed before.
   */
  destroy(): void {
    const { job, handle, isWhole } = this.#made
    if (isWhole && !job.destroyed) {
      if (handle !== 0) within('ProcessGroup.destroy', () => native.destroyProcessGroups())
      job.destroyed = true
      job.onDestroy()
    }
    this.#destroyed = true
  }

  /** The same as `destroy`, for `using`. */
  [Symbol.dispose](): void {
    this.destroy()
  }

  static {
    groupHandle = (op, group, name = 'group') => {
      if (!(group instanceof ProcessGroup))
        fail('OPTION', op, `${name} must be a process group of initProcessGroup, got ${show(group)}`)
      group.#expectAlive(op)
      return group.#made.handle
    }
  }

  #expectAlive(op: string): void {
    if (this.#destroyed || this.#made.job.destroyed) fail('DISPOSED', op, 'the process group has been destroyed')
  }

  #some(op: string, ranks: readonly number[], call: string): ProcessGroup | null {
    const { handle, job, hosts } = this.#made
    const list = Float64Array.from(ranks)
    const part = handle && within(`ProcessGroup.${op}`, () => native.newProcessGroup(handle, call, list))
    const rank = ranks.indexOf(this.rank)
    if (rank < 0) return null
    return new ProcessGroup(key, { rank, hosts: ranks.map((i) => hosts[i]), job, handle: part, isWhole: false })
  }
}

/** The group of all ranks of a job. `handle`: that of the addon, 0 for a process alone. */
export const groupOfAll = (hosts: readonly number[], rank: number, job: JobState, handle: number): ProcessGroup =>
  new ProcessGroup(key, { hosts, rank, job, handle, isWhole: true })
