import {
  type BytePair,
  BytePairTokenizer,
  type ByteVocabulary,
  type ModelDescription,
  RunFolder,
} from '../../language-model/index.js'
import type { CheckpointProgress } from '../../lib/index.js'
import { asFailure, Failure } from '../errors.js'
import { explain, ifGiven, one, type Rule, record, type Schema, textRule } from '../rules.js'
import { type History, historySchema } from './history.js'
import { type RunOptions, runFlags } from './options.js'

/** The description of a run in its folder, besides the checkpoint. */
export interface SavedRun {
  /** See {@link ModelDescription.id}; a resumed run keeps it. */
  id?: string
  options: RunOptions
  text: { path: string; name: string; digest: string } & ModelDescription['text']
}

const vocabularyRule: Rule<string> = {
  accepts(value): value is string {
    if (typeof value !== 'string' || value === '' || /\p{Surrogate}/u.test(value)) return false
    const characters = [...value]
    return new Set(characters).size === characters.length
  },
  must: () => 'must be a string of unique characters',
}

const mergesRule: Rule<readonly BytePair[]> = {
  accepts(value): value is readonly BytePair[] {
    try {
      new BytePairTokenizer(value as readonly BytePair[])
      return true
    } catch {
      return false
    }
  },
  must: () => 'must be unique pairs of earlier tokens',
}

const nameRule = textRule(/^[^\0]{1,4096}$/su, 'must be a string of 1 to 4096 characters')

const digestRule = textRule(/^[0-9a-f]{64}$/, 'must be 64 hexadecimal digits')

/** A flag that is missing has its default: a run may be older than the flag. */
const optionRules = Object.entries(runFlags).map(([name, { rule }]) => [name, ifGiven(one(rule))])
const defaults = Object.fromEntries(Object.entries(runFlags).map(([name, flag]) => [name, flag.default]))

const savedRun: Schema = (value) => {
  const { options } = (value ?? {}) as { options?: Record<string, unknown> | null }
  const hasPairs = (options?.['vocab-size'] ?? null) !== null
  return record({
    id: ifGiven(one(digestRule)),
    options: record(Object.fromEntries(optionRules)),
    text: record({
      path: one(nameRule),
      name: one(nameRule),
      digest: one(digestRule),
      ...(hasPairs ? { merges: one(mergesRule) } : { vocabulary: one(vocabularyRule) }),
    }),
  })(value)
}

/** The byte pairs of a run that has `vocab-size`. */
export const tokenizerIn = ({ text }: SavedRun): BytePairTokenizer =>
  new BytePairTokenizer((text as ByteVocabulary).merges)

/** Whether `saveLanguageModel` wrote it. */
function isModelAlone(saved: unknown): boolean {
  const { options, text } = (saved ?? {}) as { options?: object | null; text?: object | null }
  const has = (of: object | null | undefined, name: string): boolean => Object.hasOwn(of ?? {}, name)
  return has(options, 'layers') && !has(options, 'steps') && !has(text, 'digest')
}

/** Reads and validates the description of a run. The folder may be untrusted. */
export function readRun(folder: string): SavedRun {
  let saved: unknown
  try {
    saved = new RunFolder(folder, 'st-moe train').read()
  } catch (error) {
    throw asFailure(error)
  }
  if (isModelAlone(saved))
    throw new Failure(
      `${folder} holds a model without a run: st-moe generate takes it, other commands a folder of st-moe train`,
    )
  const found = savedRun(saved)
  if (found) throw notThisVersion(folder, explain(found))
  const { id, options, text } = saved as SavedRun
  return { id, options: { ...defaults, ...options }, text }
}

/** The history in the checkpoint of a run. Validates what was read from it. */
export function historyIn(
  folder: string,
  { layers, experts }: Pick<RunOptions, 'layers' | 'experts'>,
  { step, extra }: CheckpointProgress,
): History {
  const found = record({ history: historySchema({ steps: step, layers, experts }) })(extra)
  if (found)
    throw new Failure(`${new RunFolder(folder).checkpoint} does not contain the history of its run: ${explain(found)}`)
  return (extra as { history: History }).history
}

export const notThisVersion = (folder: string, why: string): Failure =>
  new Failure(`${new RunFolder(folder).description} does not describe a run of this version of st-moe train: ${why}`)
