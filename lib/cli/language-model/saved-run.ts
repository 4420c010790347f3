import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Failure } from '../errors.js'
import { readBytes } from '../files.js'
import { explain, one, type Rule, record, textRule } from '../rules.js'
import { conflictOf, type RunOptions, runFlags } from './options.js'

/** What a folder tells about its run, besides the checkpoint. */
export interface SavedRun {
  options: RunOptions
  /** `vocabulary`: all its characters, by number. */
  text: { path: string; name: string; digest: string; vocabulary: string }
}

const checkpointName = 'checkpoint.safetensors'
export const runName = 'run.json'

export const checkpointIn = (folder: string): string => join(folder, checkpointName)

/** More than a vocabulary of all characters that there are takes. */
const maxBytes = 5e6

const vocabularyRule: Rule<string> = {
  accepts(value): value is string {
    if (typeof value !== 'string' || value === '' || /\p{Surrogate}/u.test(value)) return false
    const characters = [...value]
    return new Set(characters).size === characters.length
  },
  must: () => 'must be a text in which every character is another',
}

const nameRule = textRule(/^[^\0]{1,4096}$/su, 'must be a text of 1 to 4096 characters')

const savedRun = record({
  options: record(Object.fromEntries(Object.entries(runFlags).map(([name, { rule }]) => [name, one(rule)]))),
  text: record({
    path: one(nameRule),
    name: one(nameRule),
    digest: one(textRule(/^[0-9a-f]{64}$/, 'must be 64 hexadecimal digits')),
    vocabulary: one(vocabularyRule),
  }),
})

/** What is known of the run in a folder that has a checkpoint. The folder may come from anywhere. */
export function readRun(folder: string): SavedRun {
  if (!existsSync(checkpointIn(folder))) throw new Failure(`there is no run in ${folder}: st-moe train makes one`)
  const file = join(folder, runName)
  let saved: unknown
  try {
    saved = JSON.parse(readBytes(file, maxBytes, 'read').toString())
  } catch (error) {
    if (error instanceof Failure) throw error
    throw new Failure(`${file} cannot be read: ${(error as Error).message}`)
  }
  const found = savedRun(saved)
  const wrong = found ? explain(found) : conflictOf((saved as SavedRun).options)
  if (wrong) throw new Failure(`${file} does not describe a run of this version of st-moe train: ${wrong}`)
  return saved as SavedRun
}
