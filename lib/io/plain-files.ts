import { checkInteger, checkPath, copyArray, fail } from '../runtime/check.js'
import { show } from '../runtime/errors.js'
import { type NewFile, writeTogether, writeTogetherSync } from './atomic.js'
import { readPart, readWhole, runSync } from './files.js'

/** A file to write. */
export interface FileContent {
  /** Its name; the folder must exist. */
  path: string
  /** Its new content: bytes, or text, which becomes UTF-8. */
  data: string | Uint8Array
}

const maxFiles = 1000

/** The files as the writers take them. Errors: OPTION. */
export function checkContents(op: string, name: string, files: unknown): NewFile[] {
  return copyArray(op, name, files, maxFiles).map((file, i) => {
    const { path, data } = (file ?? {}) as Partial<FileContent>
    if (typeof data !== 'string' && !(data instanceof Uint8Array))
      fail('OPTION', op, `${name}[${i}].data must be a string or a Uint8Array, got ${show(data)}`)
    return { path: checkPath(op, path), parts: [Buffer.from(data)] }
  })
}

/**
 * Writes files that belong together, atomically: none is replaced until the content of all is on disk. A reader, and a
 * process that is killed, finds the old content or the new one, never a part. Copies the content before the first await.
 * Errors: OPTION, FILE_SYSTEM.
 *
 * @example
 * ```ts
 * await utils.writeFiles([
 *   { path: 'config.json', data: '{}' },
 *   { path: 'vocabulary.txt', data: 'a b c' },
 * ])
 * console.log(new TextDecoder().decode(utils.readFileSync('vocabulary.txt'))) // → a b c
 * ```
 */
export async function writeFiles(files: readonly FileContent[]): Promise<void> {
  await writeTogether(checkContents('writeFiles', 'files', files), 'writeFiles')
}

/**
 * Like {@link utils.writeFiles}, at once.
 *
 * @example
 * ```ts
 * utils.writeFilesSync([{ path: 'notes.txt', data: 'learning rate 1e-3' }])
 * ```
 */
export function writeFilesSync(files: readonly FileContent[]): void {
  writeTogetherSync(checkContents('writeFiles', 'files', files), 'writeFiles')
}

/**
 * The content of a regular file. A pipe, a device or a folder is an error at once, so a path from outside cannot make
 * the program wait. Errors: FILE_FORMAT for more than `maxBytes` (default 2^30), FILE_SYSTEM, OPTION.
 *
 * @example
 * ```ts
 * utils.writeFilesSync([{ path: 'notes.txt', data: 'learning rate 1e-3' }])
 * console.log(utils.readFileSync('notes.txt', 100).length) // → 18
 * ```
 */
export function readFileSync(path: string, maxBytes = 2 ** 30): Uint8Array {
  const op = 'readFile'
  return runSync(readWhole(op, checkPath(op, path), checkInteger(op, 'maxBytes', maxBytes, 0)))
}

/**
 * At most `count` bytes of a regular file, from `position` on; fewer at its end. Refuses what {@link utils.readFileSync}
 * refuses. Errors: FILE_SYSTEM, OPTION.
 *
 * @example
 * ```ts
 * utils.writeFilesSync([{ path: 'notes.txt', data: 'learning rate 1e-3' }])
 * console.log(new TextDecoder().decode(utils.readFilePartSync('notes.txt', 9, 4))) // → rate
 * ```
 */
export function readFilePartSync(path: string, position: number, count: number): Uint8Array {
  const op = 'readFilePart'
  const [at, most] = [checkInteger(op, 'position', position, 0), checkInteger(op, 'count', count, 0, 2 ** 30)]
  return runSync(readPart(op, checkPath(op, path), at, most))
}
