import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { hostname, constants as system } from 'node:os'
import { checkPath } from '../runtime/check.js'
import { MoeError } from '../runtime/errors.js'
import { native } from '../runtime/native.js'

/** A lock of {@link utils.lockFile}. */
export interface FileLock {
  /** The error of a file system that has no locks, such as `ENOTSUP`; null if this process holds the lock. */
  readonly missing: string | null
  /** False once the path names another file, or none, for example after its folder was moved. True without locks. */
  isHeld(): boolean
  /** Removes the file and ends the lock. */
  release(): void
}

/** Does not follow links or block on pipes. Windows has neither flag. */
const openFlags = constants.O_RDWR | constants.O_CREAT | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0)

/**
 * Creates a file, if there is none, and locks it for this process. It is a lock of the kernel: the system releases it
 * when the process ends, and it works across the containers of a machine and the machines of an NFS. Whether the file
 * exists means nothing. Errors: FILE_SYSTEM if another process holds the lock, with its number and machine, which
 * `what`, by default the path, is said to be in use by; or if the path is no regular file.
 *
 * @example
 * ```ts
 * const lock = utils.lockFile('training.lock')
 * console.log(lock.isHeld()) // → true
 * lock.release()
 * ```
 */
export function lockFile(path: string, what: string = path): FileLock {
  const op = 'lockFile'
  checkPath(op, path)
  const { lockFile: lock } = native // which fails, where the addon cannot be loaded, before there is a file
  for (;;) {
    const file = described(op, what, () => openSync(path, openFlags, 0o666))
    try {
      if (!fstatSync(file).isFile())
        throw new MoeError('FILE_SYSTEM', op, `${what} cannot be written to: ${path} is not a file`)
      const error = lock(file)
      if (error === system.errno.EAGAIN) throw new MoeError('FILE_SYSTEM', op, `${what} is in use by ${ownerOf(file)}`)
      if (error === 0) {
        // The last holder may have removed the file between our open and our lock: then the lock protects nothing.
        if (!isStill(path, file)) {
          closeSync(file)
          continue
        }
        sign(file)
      }
      const held = error === 0
      return {
        missing: held ? null : nameOf(error),
        isHeld: () => !held || isStill(path, file),
        release: () => release(path, file, held),
      }
    } catch (error) {
      closeSync(file)
      throw error
    }
  }
}

function described<T>(op: string, what: string, open: () => T): T {
  try {
    return open()
  } catch (cause) {
    throw new MoeError('FILE_SYSTEM', op, `${what} cannot be written to: ${(cause as Error).message}`, { cause })
  }
}

function isStill(path: string, file: number): boolean {
  const [named, open] = [statSync(path, { throwIfNoEntry: false }), fstatSync(file)]
  return named?.ino === open.ino && named.dev === open.dev
}

function sign(file: number): void {
  try {
    ftruncateSync(file)
    writeSync(file, `process ${process.pid} on ${hostname()}`, 0)
  } catch {
    // On a full disk the file has no text, which is only for people.
  }
}

function ownerOf(file: number): string {
  const bytes = Buffer.alloc(300)
  const text = bytes.toString('latin1', 0, readSync(file, bytes, 0, bytes.length, 0))
  return /^process \d{1,15} on [\w.-]{1,255}$/.test(text) ? text : 'another process'
}

const nameOf = (error: number): string =>
  Object.entries(system.errno).find(([, number]) => number === error)?.[0] ?? `error ${error}`

/** Removes the file while it is still locked, unless another file has replaced it. */
function release(path: string, file: number, held: boolean): void {
  try {
    if (held && isStill(path, file)) rmSync(path)
  } catch {
    // A leftover file does not block the next run.
  }
  closeSync(file)
}
