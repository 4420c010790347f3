import { randomBytes } from 'node:crypto'
import { constants, type Stats } from 'node:fs'
import { constants as system } from 'node:os'
import { basename, dirname, isAbsolute, relative, sep } from 'node:path'
import { native } from '../runtime/native.js'
import { call, checkRegular, described, quietly, type Routine, run, runSync, unless, writeAll } from './files.js'

/**
 * Atomic writes: a temporary file in the same folder, fsync, rename, fsync of the folder. After an error or a kill the
 * previous file is intact. A symbolic link stays, and its target is replaced, unless a folder bounds the write; the file
 * keeps its mode and owner if the system allows it.
 *
 * A writer holds a lock (flock, on Windows LockFileEx) on its temporary file while the file exists. The system releases the lock when the
 * writer ends, so an unlocked temporary file is a leftover of a killed writer, and the next save to the path removes
 * it. A process ID could not tell, because containers reuse the same ones. On a file system without locks nothing is
 * removed.
 */

/** Names of files have at most 255 bytes: that of a temporary file begins with as much of its target as fits. */
const beginning = (target: string): string => `${Buffer.from(basename(target)).subarray(0, 230)}.`
const temporaryName = (target: string): string =>
  `${dirname(target)}/${beginning(target)}${randomBytes(8).toString('hex')}.tmp`
const temporaryPattern = /^[0-9a-f]{16}\.tmp$/

const busy = system.errno.EAGAIN
const { O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants

export function writeAtomicSync(path: string, parts: Iterable<Uint8Array>, op = 'writeAtomic'): void {
  writeTogetherSync([{ path, parts }], op)
}

export async function writeAtomic(path: string, parts: Iterable<Uint8Array>, op = 'writeAtomic'): Promise<void> {
  await writeTogether([{ path, parts }], op)
}

/** A file and its new content. */
export interface NewFile {
  path: string
  /** Iterated while they are written, and again where a write begins anew. */
  parts: Iterable<Uint8Array>
  /** Nothing outside of this folder, which has `path`, is replaced: a link that leads out of it becomes a file. */
  folder?: string
}

/** Like {@link writeAtomic}, for files that belong together: replaces none until the content of all is on disk. */
export async function writeTogether(files: readonly NewFile[], op: string): Promise<void> {
  await run(replace(op, files))
}

export function writeTogetherSync(files: readonly NewFile[], op: string): void {
  runSync(replace(op, files))
}

/** The new content of `target` in a temporary file, open and locked. */
interface Staged {
  target: string
  temporary: string
  file: number
  /** For errors. */
  text: string
  outcome: string
}

function* replace(op: string, files: readonly NewFile[]): Routine<void> {
  const staged: Staged[] = []
  try {
    for (const file of files) staged.push(yield* stage(op, file))
    for (const [i, { temporary, target, text, outcome }] of staged.entries()) {
      const replaced = files.slice(0, i).map(({ path }) => `; ${path} is replaced`)
      yield* describing(op, text, replaced.join('') + outcome, rename(temporary, target))
    }
  } finally {
    for (const { temporary, file } of staged) yield* discard(temporary, file)
  }
  if (process.platform === 'win32') return // folders cannot be flushed; NTFS keeps a journal of renames
  const outcome = '; the file is replaced, but may not survive a loss of power'
  const folders = new Map(staged.map(({ target, text }) => [dirname(target), text]))
  for (const [folder, text] of folders) yield* describing(op, text, outcome, syncFolder(folder))
}

function* describing<T>(op: string, text: string, outcome: string, routine: Routine<T>): Routine<T> {
  try {
    return yield* routine
  } catch (error) {
    throw described(op, text, error, outcome)
  }
}

function* syncFolder(path: string): Routine<void> {
  const folder = yield* unless(['EACCES'], call('open', path, O_RDONLY, 0))
  if (folder === null) return // of a folder that may only be written to
  try {
    yield* call('fsync', folder)
  } finally {
    yield* quietly(call('close', folder))
  }
}

function* stage(op: string, { path, parts, folder }: NewFile): Routine<Staged> {
  const text = `cannot write ${path}`
  let outcome = '; nothing was written'
  try {
    const target = yield* folder === undefined ? followLinks(path) : linkedWithin(folder, path)
    const before = yield* unless(['ENOENT'], call('stat', target))
    if (before) checkRegular(op, text, before)
    if (before) outcome = '; the file from before is intact'
    yield* removeLeftovers(target)
    for (;;) {
      const written = yield* writeTemporary(target, parts, before)
      if (written) return { target, text, outcome, ...written }
    }
  } catch (error) {
    throw described(op, text, error, outcome)
  }
}

/** Null if another save removed the new temporary file as a leftover, before it was locked. */
function* writeTemporary(
  target: string,
  parts: Iterable<Uint8Array>,
  before: Stats | null,
): Routine<Pick<Staged, 'temporary' | 'file'> | null> {
  const temporary = temporaryName(target)
  const file = yield* call('open', temporary, O_WRONLY | O_CREAT | O_EXCL, before ? 0o600 : 0o666)
  let complete = false
  try {
    if (native.lockFile(file) === busy || (yield* call('fstat', file)).nlink === 0) return null
    yield* fill(file, parts, before)
    complete = true
    return { temporary, file }
  } finally {
    if (!complete) yield* discard(temporary, file)
  }
}

/** Removes a temporary file, unless it was renamed. Unlocks it last: an unlocked temporary file is a leftover. */
function* discard(temporary: string, file: number): Routine<void> {
  yield* quietly(call('unlink', temporary))
  yield* quietly(call('close', file))
}

const mostWait = 1000 // ms

/** Windows does not replace a file that is open. Virus scanners and the like close one soon. */
function* rename(from: string, to: string): Routine<void> {
  for (let wait = 1; process.platform === 'win32' && wait < mostWait; wait *= 2) {
    if ((yield* unless(['EPERM', 'EACCES', 'EBUSY'], call('rename', from, to))) !== null) return
    yield* call('wait', wait)
  }
  yield* call('rename', from, to)
}

function* fill(file: number, parts: Iterable<Uint8Array>, before: Stats | null): Routine<void> {
  for (const part of parts) yield* writeAll(file, part)
  if (before) {
    const { uid, gid } = yield* call('fstat', file)
    if (uid !== before.uid || gid !== before.gid) yield* quietly(call('fchown', file, before.uid, before.gid))
    yield* call('fchmod', file, before.mode & 0o777)
  }
  yield* call('fsync', file)
}

/** The end of a chain of symbolic links, which may not exist. An endless chain is an error of the next call. */
function* followLinks(path: string): Routine<string> {
  let target = path
  for (let links = 0; links < 40; links++) {
    const to = yield* unless(['EINVAL', 'ENOENT'], call('readlink', target))
    if (to === null) return target
    target = isAbsolute(to) ? to : `${dirname(target)}/${to}` // not normalized: `..` is relative to the target of a link
  }
  return path
}

/** The file that a path in a folder leads to; the path itself if that is outside of the folder. */
function* linkedWithin(folder: string, path: string): Routine<string> {
  const to = yield* call('realpath', path)
  const way = relative(yield* call('realpath', folder), to)
  return way === '..' || way.startsWith(`..${sep}`) || isAbsolute(way) ? path : to
}

/** Removes temporary files of killed writers to `target`, as far as possible: no save depends on it. */
function* removeLeftovers(target: string): Routine<void> {
  const start = beginning(target)
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
