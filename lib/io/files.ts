import * as fs from 'node:fs'
import { fail } from '../runtime/check.js'
import { MoeError } from '../runtime/errors.js'

/** The functions that routines call, with their synchronous signatures: those of node:fs, and `wait`, in milliseconds. */
interface Calls {
  open(path: string, flags: number, mode: number): number
  close(file: number): void
  read(file: number, bytes: Uint8Array, offset: number, length: number, position: number): number
  write(file: number, bytes: Uint8Array, offset: number, length: number): number
  fsync(file: number): void
  fstat(file: number): fs.Stats
  fchown(file: number, user: number, group: number): void
  fchmod(file: number, mode: number): void
  stat(path: string): fs.Stats
  readlink(path: string): string
  realpath(path: string): string
  readdir(path: string): string[]
  rename(from: string, to: string): void
  unlink(path: string): void
  wait(time: number): void
}

type Request = { [N in keyof Calls]: readonly [name: N, args: Parameters<Calls[N]>] }[keyof Calls]

/**
 * A generator that yields file system calls. Its runner decides whether they block, so that the synchronous and the
 * asynchronous form of a function share one routine.
 */
export type Routine<T> = Generator<Request, T, unknown>

/** Yields one call; returns its result or throws the system's error. */
export function* call<N extends keyof Calls>(name: N, ...args: Parameters<Calls[N]>): Routine<ReturnType<Calls[N]>> {
  return (yield [name, args] as unknown as Request) as ReturnType<Calls[N]>
}

type Callback = (error: Error | null, value: unknown) => void
type Functions = Record<string, (...args: readonly unknown[]) => unknown>

const waits: Functions = {
  waitSync: (time) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, time as number),
  wait: (time, done) => setTimeout(done as Callback, time as number, null, undefined),
}
const named = (name: string): Functions[string] => waits[name] ?? (fs as unknown as Functions)[name]

const blocking = ([name, args]: Request): unknown => named(`${name}Sync`)(...args)

const promised = ([name, args]: Request): Promise<unknown> =>
  new Promise((resolve, reject) => {
    const done: Callback = (error, value) => (error ? reject(error) : resolve(value))
    named(name)(...args, done)
  })

export function runSync<T>(routine: Routine<T>): T {
  let next = routine.next()
  while (!next.done) {
    let answer: unknown
    try {
      answer = blocking(next.value)
    } catch (error) {
      next = routine.throw(error)
      continue
    }
    next = routine.next(answer)
  }
  return next.value
}

export async function run<T>(routine: Routine<T>): Promise<T> {
  let next = routine.next()
  while (!next.done) {
    let answer: unknown
    try {
      answer = await promised(next.value)
    } catch (error) {
      next = routine.throw(error)
      continue
    }
    next = routine.next(answer)
  }
  return next.value
}

const codeOf = (error: unknown): unknown => (error as { code?: unknown } | null)?.code

/** Null if the call fails with one of these system error codes. */
export function* unless<T>(codes: readonly string[], routine: Routine<T>): Routine<T | null> {
  try {
    return yield* routine
  } catch (error) {
    if (codes.includes(codeOf(error) as string)) return null
    throw error
  }
}

/** Ignores errors. */
export function* quietly(routine: Routine<unknown>): Routine<void> {
  try {
    yield* routine
  } catch {}
}

/** Wraps an error of the file system: `text`, its reason, and the state of the file. Returns other errors unchanged. */
export function described(op: string, text: string, error: unknown, outcome = ''): unknown {
  if (error instanceof MoeError || typeof codeOf(error) !== 'string') return error
  return new MoeError('FILE_SYSTEM', op, `${text}: ${(error as Error).message}${outcome}`, { cause: error })
}

export function checkRegular(op: string, text: string, stats: fs.Stats): void {
  if (!stats.isFile()) fail('FILE_SYSTEM', op, `${text}: it is ${kindOf(stats)}, not a regular file`)
}

function kindOf(stats: fs.Stats): string {
  if (stats.isDirectory()) return 'a directory'
  if (stats.isFIFO()) return 'a pipe'
  return stats.isSocket() ? 'a socket' : 'a device'
}

// Maximum bytes per call; some systems accept at most 2 GiB.
const maxPiece = 2 ** 30

export function* writeAll(file: number, bytes: Uint8Array): Routine<void> {
  for (let at = 0; at < bytes.byteLength; )
    at += yield* call('write', file, bytes, at, Math.min(bytes.byteLength - at, maxPiece))
}

/** Fills `bytes` from `position` on; false if the file ends first. */
export function* readAll(file: number, bytes: Uint8Array, position: number): Routine<boolean> {
  for (let at = 0; at < bytes.byteLength; ) {
    const count = yield* call('read', file, bytes, at, Math.min(bytes.byteLength - at, maxPiece), position + at)
    if (count === 0) return false
    at += count
  }
  return true
}

const { O_RDONLY, O_NONBLOCK, O_NOCTTY } = fs.constants

/**
 * Opens a regular file for reading while `use` runs. Anything else, such as a pipe without a writer, is an error at
 * once.
 */
export function* reading<T>(op: string, path: string, use: (file: number, size: number) => Routine<T>): Routine<T> {
  const text = `cannot read ${path}`
  try {
    const file = yield* call('open', path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0)
    try {
      const stats = yield* call('fstat', file)
      checkRegular(op, text, stats)
      return yield* use(file, stats.size)
    } finally {
      yield* quietly(call('close', file))
    }
  } catch (error) {
    throw described(op, text, error)
  }
}

/** The content of a regular file. Errors: FILE_FORMAT for more than `max` bytes, FILE_SYSTEM. */
export const readWhole = (op: string, path: string, max: number): Routine<Buffer> =>
  reading(op, path, function* (file, size) {
    if (size > max) fail('FILE_FORMAT', op, `${path} has ${size} bytes, at most ${max} are allowed`)
    const bytes = Buffer.alloc(size) // no more is read: some files of /proc have size 0 and no end
    if (!(yield* readAll(file, bytes, 0))) fail('FILE_FORMAT', op, `${path}: the file ended while it was read`)
    return bytes
  })

/** The `count` bytes at `position` of a regular file; fewer at its end. Errors: FILE_SYSTEM. */
export const readPart = (op: string, path: string, position: number, count: number): Routine<Buffer> =>
  reading(op, path, function* (file, size) {
    const bytes = Buffer.allocUnsafe(Math.max(0, Math.min(count, size - position)))
    if (!(yield* readAll(file, bytes, position))) fail('FILE_SYSTEM', op, `${path}: the file ended while it was read`)
    return bytes
  })
