import { existsSync, mkdirSync, rmSync, statSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { writeAtomicSync } from '../../io/atomic.js'
import { Failure } from '../errors.js'
import { note } from '../output.js'
import { type Lock, takeLock } from './lock.js'
import { checkpointIn, runName, type SavedRun } from './saved-run.js'

/** The folder of a run while this process, and no other, writes to it. */
export class RunFolder {
  readonly path: string
  readonly #lock: Lock
  readonly #unlock = (): void => this.#lock.release()

  /** Makes the folder where there is none. */
  constructor(path: string) {
    this.path = path
    try {
      makeFolder(resolve(path))
      this.#lock = takeLock(join(path, 'run.lock'))
    } catch (error) {
      if (error instanceof Failure) throw error
      throw new Failure(`${path} cannot be written to: ${(error as Error).message}`)
    }
    const { missing } = this.#lock
    if (missing) note(`${path} cannot be locked (${missing}): let no other process train there`)
    process.once('exit', this.#unlock)
  }

  get hasCheckpoint(): boolean {
    return existsSync(checkpointIn(this.path))
  }

  /** Takes an earlier run away. */
  clear(): void {
    rmSync(checkpointIn(this.path), { force: true })
  }

  describe(run: SavedRun): void {
    this.write({ [runName]: `${JSON.stringify(run, null, 2)}\n` })
  }

  /** Text files by name; each appears whole. */
  write(files: Record<string, string>): void {
    for (const [name, text] of Object.entries(files)) writeAtomicSync(join(this.path, name), [Buffer.from(text)])
  }

  [Symbol.dispose](): void {
    this.#unlock()
    process.removeListener('exit', this.#unlock)
  }
}

/** One folder after another: Node's recursive mkdir never ends under /proc. */
function makeFolder(path: string): void {
  try {
    mkdirSync(path)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST' && statSync(path).isDirectory()) return
    if (code === 'EEXIST') throw new Error('it is not a folder')
    if (code !== 'ENOENT' || dirname(path) === path) throw error
    makeFolder(dirname(path))
    mkdirSync(path)
  }
}
