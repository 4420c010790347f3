import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Failure } from '../errors.js'
import { readBytes } from '../files.js'
import { explain, one, type Rule, record, textRule } from '../rules.js'
import { conflictOf, type RunOptions, runFlags } from './options.js'

/** The description of a run in its folder, besides the checkpoint. */
export interface SavedRun {
  options: RunOptions
  /** `vocabulary`: all its characters, in token order. */
  text: { path: string; name: string; digest: string; vocabulary: string }
}

const checkpointName = 'checkpoint.safetensors'
export const runName = 'run.json'

export const checkpointIn = (folder: string): string => join(folder, checkpointName)

/** More than a vocabulary of every character takes. */
const maxBytes = 5e6

const vocabularyRule: Rule<string> = {
  accepts(value): value is string {
    if (typeof value !== 'string' || value === '' || /\p{Surrogate}/u.test(value)) return false
    const characters = [...value]
    return new Set(characters).size === characters.length
  },
  must: () => 'must be a string of unique characters',
}

const nameRule = textRule(/^[^\0]{1,4096}$/su, 'must be a string of 1 to 4096 characters')

const savedRun = record({
  options: record(Object.fromEntries(Object.entries(runFlags).map(([name, { rule }]) => [name, one(rule)]))),
  text: record({
    path: one(nameRule),
    name: one(nameRule),
    digest: one(textRule(/^[0-9a-f]{64}$/, 'must be 64 hexadecimal digits')),
    vocabulary: one(vocabularyRule),
  }),
})

/** Reads and validates the description of a run. The folder may be untrusted. */
export function readRun(folder: string): SavedRun {
  if (!existsSync(checkpointIn(folder))) throw new Failure(`there is no run in ${folder}: st-moe train creates one`)
  const file = join(folder, runName)
  let saved: unknown
  try {
    saved = JSON.parse(readBytes(file, maxBytes).toString())
  } catch (error) {
    if (error instanceof Failure) throw error
    throw new Failure(`${file} cannot be read: ${(error as Error).message}`)
  }
  const found = savedRun(saved)
  const wrong = found ? explain(found) : conflictOf((saved as SavedRun).options)
  if (wrong) throw new Failure(`${file} does not describe a run of this version of st-moe train: ${wrong}`)
  return saved as SavedRun
}
