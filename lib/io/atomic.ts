import { randomBytes } from 'node:crypto'
import { constants, type Stats } from 'node:fs'
import { constants as system } from 'node:os'
import { basename, dirname, isAbsolute } from 'node:path'
import { native } from '../native.js'
import { call, checkRegular, described, quietly, type Routine, run, runSync, unless, writeAll } from './files.js'

/**
 * Files appear whole or not at all: a temporary file in the same folder, fsync, rename, fsync of the folder. After an
 * error or a kill the file from before is still there. A symbolic link stays, and the file that it leads to is
 * replaced; mode and owner of the file stay, as far as the system allows.
 *
 * A writer holds a lock (flock) on its temporary file for as long as that exists. The system ends the lock with the
 * writer, so a temporary file without one was left by a writer that was killed, and the next save to the path removes
 * it. Process numbers would not tell: containers have the same ones. Where a file system has no locks, nothing is
 * removed.
 */

const temporaryName = (target: string): string => `${target}.${randomBytes(8).toString('hex')}.tmp`
const temporaryPattern = /^[0-9a-f]{16}\.tmp$/

const busy = system.errno.EAGAIN
const { O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants

export function writeAtomicSync(path: string, parts: readonly Uint8Array[], op = 'writeAtomic'): void {
  runSync(replace(op, path, parts))
}

export async function writeAtomic(path: string, parts: readonly Uint8Array[], op = 'writeAtomic'): Promise<void> {
  await run(replace(op, path, parts))
}

function* replace(op: string, path: string, parts: readonly Uint8Array[]): Routine<void> {
  const text = `cannot write ${path}`
  let outcome = '; nothing was written'
  try {
    const target = yield* followLinks(path)
    const before = yield* unless(['ENOENT'], call('stat', target))
    if (before) checkRegular(op, text, before)
    if (before) outcome = '; the file from before is intact'
    yield* removeLeftovers(target)
    while (!(yield* writeAndRename(target, parts, before)));
    outcome = '; the file is replaced, but may not survive a loss of power'
    const folder = yield* call('open', dirname(target), O_RDONLY, 0)
    try {
      yield* call('fsync', folder)
    } finally {
      yield* quietly(call('close', folder))
    }
  } catch (error) {
    throw described(op, text, error, outcome)
  }
}

/** False where another save took the new temporary file for a left-over before it had its lock. */
function* writeAndRename(target: string, parts: readonly Uint8Array[], before: Stats | null): Routine<boolean> {
  const temporary = temporaryName(target)
  const file = yield* call('open', temporary, O_WRONLY | O_CREAT | O_EXCL, before ? 0o600 : 0o666)
  try {
    if (native.lockFile(file) === busy || (yield* call('fstat', file)).nlink === 0) return false
    yield* fill(file, parts, before)
    yield* call('rename', temporary, target)
    return true
  } catch (error) {
    yield* quietly(call('unlink', temporary))
    throw error
  } finally {
    yield* quietly(call('close', file)) // not before the rename: a temporary file without its lock is a left-over
  }
}

function* fill(file: number, parts: readonly Uint8Array[], before: Stats | null): Routine<void> {
  for (const part of parts) yield* writeAll(file, part)
  if (before) {
    const { uid, gid } = yield* call('fstat', file)
    if (uid !== before.uid || gid !== before.gid) yield* unless(['EPERM'], call('fchown', file, before.uid, before.gid))
    yield* call('fchmod', file, before.mode & 0o777)
  }
  yield* call('fsync', file)
}

/** Where a chain of symbolic links ends, whether a file is there or not. One without end is an error of the next call. */
function* followLinks(path: string): Routine<string> {
  let target = path
  for (let links = 0; links < 40; links++) {
    const to = yield* unless(['EINVAL', 'ENOENT'], call('readlink', target))
    if (to === null) return target
    target = isAbsolute(to) ? to : `${dirname(target)}/${to}` // not normalized: `..` means the folder that a link leads to
  }
  return path
}

/** Removes what killed writers to `target` have left. No save depends on that, so what cannot be removed stays. */
function* removeLeftovers(target: string): Routine<void> {
  const start = `${basename(target)}.`
  const isLeftover = (name: string): boolean =>
    name.startsWith(start) && temporaryPattern.test(name.slice(start.length))
  const names = yield* unless(['EACCES'], call('readdir', dirname(target)))
  for (const name of names?.filter(isLeftover) ?? []) yield* quietly(removeUnlocked(`${dirname(target)}/${name}`))
}

function* removeUnlocked(temporary: string): Routine<void> {
  const file = yield* call('open', temporary, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0)
  try {
    if (native.lockFile(file) === 0) yield* call('unlink', temporary)
  } finally {
    yield* quietly(call('close', file))
  }
}
