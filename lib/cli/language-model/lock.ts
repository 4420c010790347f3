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
import { native } from '../../native.js'
import { Failure } from '../errors.js'

export interface Lock {
  /** Why the file system has no locks; null where this process holds one. */
  readonly missing: string | null
  release(): void
}

/** A link is not followed, and a pipe does not block. Windows has neither flag. */
const openFlags = constants.O_RDWR | constants.O_CREAT | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0)

/**
 * Takes the lock that a file stands for, or throws a Failure where another process has it. The lock is the kernel's: it
 * ends with its process, however that ends, and is seen by all containers of a machine and all machines of an NFS. That
 * the file is there, and what it says, means nothing; its text is for people.
 */
export function takeLock(path: string): Lock {
  for (;;) {
    const file = openSync(path, openFlags, 0o666)
    try {
      if (!fstatSync(file).isFile()) throw new Error(`${path} is not a file`)
      const error = native.lockFile(file)
      if (error === system.errno.EAGAIN) throw new Failure(`${dirname(path)} is in use by ${ownerOf(file)}`)
      if (error === 0) {
        // Who had it before may have removed the file between our open and our lock: then it protects nothing.
        if (!isStill(path, file)) {
          closeSync(file)
          continue
        }
        sign(file)
      }
      return { missing: error === 0 ? null : nameOf(error), release: () => release(path, file, error === 0) }
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
    // A full disk takes no text, which is for people only.
  }
}

function ownerOf(file: number): string {
  const bytes = Buffer.alloc(300)
  const text = bytes.toString('latin1', 0, readSync(file, bytes, 0, bytes.length, 0))
  return /^process \d{1,15} on [\w.-]{1,255}$/.test(text) ? text : 'another process'
}

const nameOf = (error: number): string =>
  Object.entries(system.errno).find(([, number]) => number === error)?.[0] ?? `error ${error}`

/** Removed while it is still locked, unless somebody has put another in its place. */
function release(path: string, file: number, held: boolean): void {
  try {
    if (held && isStill(path, file)) rmSync(path)
  } catch {
    // One that stays is no obstacle.
  }
  closeSync(file)
}
