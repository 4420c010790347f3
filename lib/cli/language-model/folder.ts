import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { writeAtomicSync } from '../../io/atomic.js'
import { Failure } from '../errors.js'
import { type RunOptions, runFlags } from './options.js'

/** What a folder tells about its run, besides the checkpoint. */
export interface SavedRun {
  options: RunOptions
  text: { path: string; name: string; digest: string; vocabulary: string[] }
}

const checkpointName = 'checkpoint.safetensors'
export const runName = 'run.json'

export const checkpointIn = (folder: string): string => join(folder, checkpointName)

/** What is known of the run in a folder that has a checkpoint. */
export function readRun(folder: string): SavedRun {
  if (!existsSync(checkpointIn(folder))) throw new Failure(`there is no run in ${folder}: st-moe train makes one`)
  const file = join(folder, runName)
  let saved: unknown
  try {
    saved = JSON.parse(readFileSync(file, 'utf8'))
  } catch (error) {
    throw new Failure(`${file} cannot be read: ${(error as Error).message}`)
  }
  if (!isSavedRun(saved)) throw new Failure(`${file} does not describe a run of this version of st-moe train`)
  return saved
}

function isSavedRun(value: unknown): value is SavedRun {
  const { options, text } = (value ?? {}) as Partial<SavedRun>
  const isOption = (name: string): boolean => {
    const [saved, usual] = [options?.[name as keyof RunOptions], runFlags[name as keyof RunOptions].default]
    return typeof saved === typeof usual || (usual === null && typeof saved === 'number')
  }
  const isText = (word: unknown): boolean => typeof word === 'string'
  return (
    Object.keys(runFlags).every(isOption) &&
    [text?.path, text?.name, text?.digest].every(isText) &&
    Array.isArray(text?.vocabulary) &&
    text.vocabulary.every(isText)
  )
}

/** The folder of a run while this process, and no other, writes to it. */
export class RunFolder {
  readonly path: string
  readonly #lock: string
  readonly #unlock = (): void => rmSync(this.#lock, { force: true })

  /** Makes the folder where there is none. */
  constructor(path: string) {
    this.path = path
    this.#lock = join(path, 'run.lock')
    try {
      makeFolder(resolve(path))
      this.#take()
    } catch (error) {
      if (error instanceof Failure) throw error
      throw new Failure(`${path} cannot be written to: ${(error as Error).message}`)
    }
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

  #take(): void {
    for (;;) {
      try {
        writeFileSync(this.#lock, String(process.pid), { flag: 'wx' })
        return
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      }
      const owner = readFileSync(this.#lock, 'utf8')
      if (isRunning(owner)) {
        const who = isNumber(owner) ? `process ${owner}` : 'another process'
        throw new Failure(`${this.path} is in use by ${who}; if that does not train, remove ${this.#lock}`)
      }
      this.#unlock() // left by a process that was killed
    }
  }
}

const isNumber = (text: string): boolean => /^\d{1,15}$/.test(text)

function isRunning(pid: string): boolean {
  if (!isNumber(pid)) return true // about to write its number
  if (Number(pid) === process.pid) return false // numbers start again in a new container
  try {
    return process.kill(Number(pid), 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
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
