/**
 * The kind of an error, for programs; its text is for people. `OPTION` is any invalid argument without a more specific
 * code; `FILE_SYSTEM` is a file that cannot be read or written, with the system's error as `cause`; `DEVICE_FAULT` is a
 * kernel that faulted on the GPU, which this process cannot use again; `PEER_LOST` is a process of a job that has ended, `TIMEOUT` an operation that not all
 * processes have entered in time, `PROCESS_GROUP` processes that disagree, or an error of the MPI library; `INTERNAL` is a
 * bug in this package.
 */
export type MoeErrorCode =
  | 'SHAPE'
  | 'DTYPE'
  | 'DEVICE'
  | 'DISPOSED'
  | 'OPTION'
  | 'STATE_DICT'
  | 'FILE_FORMAT'
  | 'FILE_SYSTEM'
  | 'OUT_OF_MEMORY'
  | 'UNSUPPORTED'
  | 'NON_FINITE'
  | 'BACKEND_UNAVAILABLE'
  | 'DEVICE_FAULT'
  | 'PEER_LOST'
  | 'TIMEOUT'
  | 'PROCESS_GROUP'
  | 'INTERNAL'

/** The operation of errors about the package itself, such as an addon that cannot be loaded. */
export const packageName = 'st-moe'

/**
 * The error class of this package. `message` names the operation, the argument, the expected and the actual value.
 *
 * @example
 * ```ts
 * const moe = new MoE({ dim: 64, numExperts: 4 })
 * try {
 *   moe.forward(ones([16, 64]))
 * } catch (error) {
 *   if (!(error instanceof MoeError)) throw error
 *   console.log(error.code, error.op) // → SHAPE MoE.forward
 *   console.log(error.message) // → [MoE.forward] x must be [batch, tokens, 64], got [16, 64]
 * }
 * ```
 */
export class MoeError extends Error {
  /** 'MoeError', also where `instanceof` fails, as across workers. */
  override readonly name = 'MoeError'
  /** The kind of error, for programs. */
  readonly code: MoeErrorCode
  /** The operation that failed, for example `MoE.forward`. */
  readonly op: string

  /** `text` without the operation: the message becomes `[op] text`. */
  constructor(code: MoeErrorCode, op: string, text: string, options?: ErrorOptions) {
    const name = typeof op === 'string' ? op : show(op)
    super(`[${name}] ${typeof text === 'string' ? text : show(text)}`, options)
    this.code = code
    this.op = name
  }
}

/**
 * Runs `call` as a part of `op`, which its errors name instead of their own operation.
 *
 * @example
 * ```ts
 * const load = (path: string) => utils.within('load', () => utils.readFileSync(path))
 * try {
 *   load('/no such file')
 * } catch (error) {
 *   console.log((error as MoeError).op) // → load
 * }
 * ```
 */
export function within<T>(op: string, call: () => T): T {
  try {
    return call()
  } catch (error) {
    if (!(error instanceof MoeError) || error.op === packageName) throw error
    throw new MoeError(error.code, op, error.message.slice(`[${error.op}] `.length), { cause: error })
  }
}

/**
 * A short text for any value in an error message; safe for proxies.
 *
 * @example
 * ```ts
 * console.log(utils.show('red'), utils.show([1, 2]), utils.show(new Map())) // → "red" [1, 2] Map
 * ```
 */
export function show(value: unknown): string {
  try {
    if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 57)}...` : value)
    if (typeof value === 'function') return 'a function'
    if (typeof value === 'bigint') return `${value}n`
    if (Array.isArray(value)) {
      const head = value.slice(0, 8).map((entry) => (typeof entry === 'object' ? kind(entry) : show(entry)))
      return `[${head.join(', ')}${value.length > 8 ? ', ...' : ''}]`
    }
    return typeof value === 'object' && value !== null ? kind(value) : String(value)
  } catch {
    return 'an unreadable value'
  }
}

function kind(value: object | null): string {
  if (value === null) return 'null'
  const name = Object.getPrototypeOf(value)?.constructor?.name
  const shown = typeof name === 'string' && name !== '' && name !== 'Object' ? name.slice(0, 60) : 'an object'
  const copy = (value as { [brand]?: unknown })[brand]
  if (copy === undefined || copy === thisCopy) return shown
  return `${shown} of another copy of st-moe; \`npm ls st-moe\` shows where it is`
}

const brand = Symbol.for('st-moe')
const thisCopy = Symbol()

/** Marks a class, so that an error message can tell its objects from those of another copy of this package. */
export function markCopy({ prototype }: { prototype: object }): void {
  Object.defineProperty(prototype, brand, { value: thisCopy })
}
