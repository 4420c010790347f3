import { lstatSync } from 'node:fs'
import { basename, join } from 'node:path'
import { type Checkpoint, MoeError } from '../../index.js'
import { writeAtomicSync } from '../../io/atomic.js'
import { makeFolder } from '../../io/make-folder.js'
import { checkpointIn, descriptionIn, holdsRun, holdsSave, saveRun } from '../../language-model/folder.js'
import { asFailure, Failure } from '../errors.js'
import { note } from '../output.js'
import { type Lock, takeLock } from './lock.js'
import { reportFiles } from './report.js'
import type { SavedRun } from './saved-run.js'

/** The folder of a run, locked for writing by this process. */
export class RunFolder {
  readonly path: string
  readonly #lock: Lock
  readonly #unlock = (): void => this.#lock.release()

  /** Creates the folder if it does not exist. */
  constructor(path: string) {
    this.path = path
    try {
      makeFolder(path)
      this.#lock = takeLock(join(path, 'run.lock'))
    } catch (error) {
      if (error instanceof Failure) throw error
      throw new Failure(`${path} cannot be written to: ${(error as Error).message}`)
    }
    const { missing } = this.#lock
    if (missing) note(`${path} cannot be locked (${missing}): make sure that no other process trains there`)
    process.once('exit', this.#unlock)
  }

  /** The names of the files there that a run would replace. */
  get files(): string[] {
    return [checkpointIn, descriptionIn]
      .map((pathIn) => basename(pathIn(this.path)))
      .concat(reportFiles)
      .filter((name) => lstatSync(join(this.path, name), { throwIfNoEntry: false }))
  }

  get holdsRun(): boolean {
    return holdsRun('st-moe train', this.path)
  }

  /** Whether a run can resume from it. */
  get holdsSave(): boolean {
    return holdsSave('st-moe train', this.path)
  }

  /** Writes the description of the run and its checkpoint; an earlier run stays until both are on disk. */
  async save(run: SavedRun, checkpoint: Checkpoint): Promise<void> {
    this.#checkOwned()
    try {
      await saveRun('st-moe train', this.path, run, checkpoint, 2)
    } catch (error) {
      throw this.#unwritten(error)
    }
  }

  /** Writes text files atomically, by name. */
  write(files: Record<string, string>): void {
    this.#checkOwned()
    try {
      for (const [name, text] of Object.entries(files)) writeAtomicSync(join(this.path, name), [Buffer.from(text)])
    } catch (error) {
      throw this.#unwritten(error)
    }
  }

  /** Another run may be in the path of a folder that was moved. */
  #checkOwned(): void {
    if (!this.#lock.isHeld())
      throw new Failure(`${this.path} is no longer the folder of this run: it was moved, or its run.lock was removed`)
  }

  /** Adds to an error about the disk that the last checkpoint is intact. */
  #unwritten(error: unknown): unknown {
    if (!(error instanceof MoeError && error.code === 'FILE_SYSTEM')) return error
    const next = this.holdsSave
      ? `the last checkpoint is intact: --resume --out ${this.path} continues from it`
      : 'the run has no checkpoint yet'
    return new Failure(`${(asFailure(error) as Failure).message}; ${next}`)
  }

  [Symbol.dispose](): void {
    this.#unlock()
    process.removeListener('exit', this.#unlock)
  }
}
