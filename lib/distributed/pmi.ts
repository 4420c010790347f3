import type { Duplex } from 'node:stream'

/** Longest line that a process may send. The protocol needs about 1,100 characters. */
const maxLine = 65_536

/** What a {@link PmiServer} reports. */
export interface PmiEvents {
  /** A process ended the job with MPI_Abort. */
  onAbort(rank: number, exitCode: number, reason: string): void
  /** A process sent something that is not this protocol. */
  onViolation(rank: number, reason: string): void
  /** A process ended without a barrier that others wait in, which therefore never ends. */
  onDeadlock(rank: number): void
}

/**
 * The launcher's side of version 1 of PMI, the process management interface of MPICH: lines of `key=value` pairs, by which
 * the processes of a job learn their number and exchange addresses through a common store. Intel MPI speaks it too.
 */
export class PmiServer {
  /** Libraries name shared memory after the job. With the name of an earlier job, which was killed, they hang. */
  readonly #job: string
  readonly #size: number
  readonly #events: PmiEvents
  readonly #store: Map<string, string>
  readonly #sockets = new Map<number, Duplex>()
  readonly #waiting = new Set<number>()
  readonly #ended = new Set<number>()

  constructor(job: string, size: number, events: PmiEvents) {
    this.#job = job
    this.#size = size
    this.#events = events
    this.#store = new Map([['PMI_process_mapping', `(vector,(0,1,${size}))`]]) // all on one machine
  }

  /** What the processes have told each other. */
  get values(): Iterable<string> {
    return this.#store.values()
  }

  /** Answers a process on its socket. */
  connect(rank: number, socket: Duplex): void {
    let rest = ''
    this.#sockets.set(rank, socket)
    socket.on('error', () => {}) // the process has ended: its exit is reported
    socket.setEncoding('latin1')
    socket.on('data', (text: string) => {
      const lines = `${rest}${text}`.split('\n')
      rest = lines.pop()!
      for (const line of lines) if (line !== '') this.#take(rank, line)
      if (rest.length <= maxLine) return
      rest = ''
      this.#events.onViolation(rank, `a line of more than ${maxLine} characters`)
    })
  }

  /** A process has ended. */
  end(rank: number): void {
    this.#ended.add(rank)
    this.#waiting.delete(rank)
    this.#sockets.get(rank)?.destroy()
    this.#releaseBarrier()
  }

  #take(rank: number, line: string): void {
    const reply = this.#answer(rank, line)
    if (reply !== null) this.#say(rank, reply)
    this.#releaseBarrier()
  }

  /** The line that answers a request at once; null if it waits, or has no answer. */
  #answer(rank: number, line: string): string | null {
    const fields = fieldsOf(line)
    const key = fields.get('key') ?? ''
    const command = fields.get('cmd')
    switch (command) {
      case 'init':
        return 'cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0'
      case 'get_maxes':
        return 'cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024 rc=0'
      case 'get_appnum':
        return 'cmd=appnum appnum=0 rc=0'
      case 'get_my_kvsname':
        return `cmd=my_kvsname kvsname=${this.#job} rc=0`
      case 'get_universe_size':
        return `cmd=universe_size size=${this.#size} rc=0`
      case 'put':
        this.#store.set(key, restAfter(line, 'value'))
        return 'cmd=put_result rc=0 msg=success'
      case 'get': {
        const value = this.#store.get(key)
        return `cmd=get_result ${value === undefined ? 'rc=-1 msg=key_not_found value=unknown' : `rc=0 msg=success value=${value}`}`
      }
      case 'barrier_in':
        this.#waiting.add(rank)
        return null
      case 'finalize':
        return 'cmd=finalize_ack rc=0'
      case 'abort': {
        const code = Number(fields.get('exitcode'))
        const exitCode = Number.isInteger(code) && code > 0 && code < 256 ? code : 1
        this.#events.onAbort(rank, exitCode, restAfter(line, 'error_msg'))
        return null
      }
      case 'spawn':
      case 'publish_name':
      case 'lookup_name':
      case 'unpublish_name':
        return `cmd=${command.replace('_name', '')}_result rc=-1 msg=not_supported`
      default:
        this.#events.onViolation(rank, `an unknown request: ${line.slice(0, 100)}`)
        return null
    }
  }

  #releaseBarrier(): void {
    if (this.#waiting.size === 0) return
    const [missing] = this.#ended
    if (missing !== undefined) this.#events.onDeadlock(missing)
    if (this.#waiting.size < this.#size) return
    const all = [...this.#waiting]
    this.#waiting.clear()
    for (const rank of all) this.#say(rank, 'cmd=barrier_out rc=0')
  }

  #say(rank: number, line: string): void {
    this.#sockets.get(rank)!.write(`${line}\n`, 'latin1')
  }
}

const fieldsOf = (line: string): Map<string, string> =>
  new Map(
    line.split(' ').map((pair): [string, string] => {
      const [key, ...value] = pair.split('=')
      return [key, value.join('=')]
    }),
  )

/** The value of the last field of a line, which may contain spaces. */
function restAfter(line: string, field: string): string {
  const start = ` ${field}=`
  return line.includes(start) ? line.slice(line.indexOf(start) + start.length) : ''
}
