import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Failure } from '../errors.js'
import { readBytes } from '../files.js'
import { explain, ifGiven, one, type Rule, record, textRule } from '../rules.js'
import { conflictOf, layerFlags, type RunOptions, runFlags } from './options.js'

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

/** The first version had none of `layerFlags`, whose defaults are what it did. */
const optionRules = Object.entries(runFlags).map(([name, { rule }]) => [
  name,
  Object.hasOwn(layerFlags, name) ? ifGiven(one(rule)) : one(rule),
])
const layerDefaults = Object.fromEntries(Object.entries(layerFlags).map(([name, flag]) => [name, flag.default]))

const savedRun = record({
  options: record(Object.fromEntries(optionRules)),
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
  if (found) throw notThisVersion(folder, explain(found))
  const { options, text } = saved as SavedRun
  const all = { ...layerDefaults, ...options }
  const conflict = conflictOf(all)
  if (conflict) throw notThisVersion(folder, conflict)
  return { options: all, text }
}

export const notThisVersion = (folder: string, why: string): Failure =>
  new Failure(`${join(folder, runName)} does not describe a run of this version of st-moe train: ${why}`)
