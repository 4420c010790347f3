import { lstatSync } from 'node:fs'
import { basename, join } from 'node:path'
import { RunFolder } from '../../language-model/index.js'
import { type Checkpoint, MoeError, utils } from '../../lib/index.js'
import { asFailure, Failure } from '../errors.js'
import { note } from '../output.js'
import { reportFiles } from './report.js'
import type { SavedRun } from './saved-run.js'

/** The folder of a run, locked for writing by this process. */
export class TrainingFolder extends RunFolder {
  readonly #lock: utils.FileLock
  readonly #unlock = (): void => this.#lock.release()

  /** Creates the folder if it does not exist. */
  constructor(path: string) {
    super(path, 'st-moe train')
    try {
      this.#lock = this.lock()
    } catch (error) {
      throw asFailure(error)
    }
    const { missing } = this.#lock
    if (missing) note(`${path} cannot be locked (${missing}): make sure that no other process trains there`)
    process.once('exit', this.#unlock)
  }

  /** The names of the files there that a run would replace. */
  get files(): string[] {
    return this.replaced
      .map((path) => basename(path))
      .concat(reportFiles)
      .filter((name) => lstatSync(join(this.path, name), { throwIfNoEntry: false }))
  }

  /** Writes the description of the run and its checkpoint; an earlier run stays until both are on disk. */
  override async save(run: SavedRun, checkpoint: Checkpoint): Promise<void> {
    this.#checkOwned()
    try {
      await super.save(run, checkpoint, 2)
    } catch (error) {
      throw this.#unwritten(error)
    }
  }

  /** Writes text files atomically, by name. */
  write(files: Record<string, string>): void {
    this.#checkOwned()
    try {
      for (const [name, data] of Object.entries(files)) utils.writeFilesSync([{ path: join(this.path, name), data }])
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
