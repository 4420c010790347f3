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
import { dirname } from 'node:path'
import { native } from '../../runtime/native.js'
import { Failure } from '../errors.js'

export interface Lock {
  /** The error of a file system without locks; null if this process holds the lock. */
  readonly missing: string | null
  /** False once the path names another file, or none: this process no longer owns the folder. True without locks. */
  isHeld(): boolean
  release(): void
}

/** Does not follow links or block on pipes. Windows has neither flag. */
const openFlags = constants.O_RDWR | constants.O_CREAT | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0)

/**
 * Locks a file, or throws a Failure if another process holds the lock. It is a kernel lock: the system releases it when
 * the process ends, and it works across the containers of a machine and the machines of an NFS. The existence of the
 * file means nothing, and its text is only for people.
 */
export function takeLock(path: string): Lock {
  for (;;) {
    const file = openSync(path, openFlags, 0o666)
    try {
      if (!fstatSync(file).isFile()) throw new Error(`${path} is not a file`)
      const error = native.lockFile(file)
      if (error === system.errno.EAGAIN) throw new Failure(`${dirname(path)} is in use by ${ownerOf(file)}`)
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
