import { mkdirSync, statSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { checkPath } from '../runtime/check.js'
import { MoeError } from '../runtime/errors.js'

/**
 * Creates a folder, and those above it. An existing one is kept. Errors: OPTION, FILE_SYSTEM.
 *
 * @example
 * ```ts
 * utils.makeFolder('runs/today')
 * utils.writeFilesSync([{ path: 'runs/today/notes.txt', data: 'learning rate 1e-3' }])
 * ```
 */
export function makeFolder(path: string): void {
  const op = 'makeFolder'
  try {
    const folder = resolve(checkPath(op, path))
    const reserved = process.platform === 'win32' ? reservedName(folder) : null
    if (reserved !== null) throw new Error(`Windows reserves the name ${reserved} for a device`)
    makeAll(folder)
  } catch (error) {
    if (error instanceof MoeError) throw error
    throw new MoeError('FILE_SYSTEM', op, `${path} cannot be written to: ${(error as Error).message}`, { cause: error })
  }
}

/** The first name of a path that is a device in every folder of Windows, with any extension. */
export function reservedName(path: string): string | null {
  const device = /^(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[\d¹²³])\s*(?:\..*)?$/i
  return path.split(/[\\/]/).find((name) => device.test(name)) ?? null
}

/**
 * One at a time, because Node's recursive mkdir never returns under /proc. Below a file, Windows says ENOENT and other
 * systems ENOTDIR: the file itself then tells what is wrong.
 */
function makeAll(folder: string): void {
  try {
    makeOne(folder)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if ((code !== 'ENOENT' && code !== 'ENOTDIR') || dirname(folder) === folder) throw error
    makeAll(dirname(folder))
    makeOne(folder)
  }
}

/** Another thread or process may create it at the same time. */
function makeOne(folder: string): void {
  try {
    mkdirSync(folder)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    if (!statSync(folder).isDirectory()) throw new Error(`${folder} is not a folder`)
  }
}
