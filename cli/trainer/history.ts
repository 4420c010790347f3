import { ifGiven, list, numberRule, one, record, type Schema, textRule } from '../rules.js'
import type { Evaluation } from './evaluation.js'
import { ngramNames } from './ngram.js'

/** What a run records for its report; stored in the checkpoint as JSON. */
export interface History {
  /** Steps done. */
  steps: number
  /** Steps per entry of the lists below, which is their mean; the last entry may have fewer. */
  stride: number
  /** Training loss, nats per character. */
  loss: number[]
  /** Fraction of fully dropped tokens, mean over the layers. */
  dropped: number[]
  /** [entry][layer][expert]: fraction of the tokens whose top-1 expert it is. */
  load: number[][][]
  /** Missing, like `stepSeconds`, in a run that was started before they were recorded. */
  learningRate?: number[]
  /** Time per step, without evaluations. */
  stepSeconds?: number[]
  evaluations: Evaluation[]
  /** Time spent in training, without evaluations. */
  seconds: number
  /** Held-out losses of the n-gram baselines, unigram first. */
  ngrams?: number[]
  /** What the samples continue. */
  prompt?: string
  /** Of the model. */
  parameters?: number
  /** Missing in a run from before byte pairs: batch · context. */
  charactersPerStep?: number
}

/** One step of a {@link History}. */
export interface HistoryEntry {
  loss: number
  dropped: number
  learningRate: number
  stepSeconds: number
  load: number[][]
}

export const emptyHistory = (): History => ({
  steps: 0,
  stride: 1,
  loss: [],
  dropped: [],
  load: [],
  learningRate: [],
  stepSeconds: [],
  evaluations: [],
  seconds: 0,
})

/** Numbers in all of `load`: about 30 MB of JSON. */
const maxLoads = 4e6

/** Adds a step. A long history doubles the steps per entry. */
export function recordStep(history: History, entry: HistoryEntry): void {
  const within = history.steps % history.stride
  if (within === 0) {
    if (history.loss.length >= maxEntries(entry)) halve(history)
    put(history, history.loss.length, rounded(entry))
  } else {
    const last = history.loss.length - 1
    const sum = mix(entryAt(history, last), entry, 1 / (within + 1))
    put(history, last, within + 1 === history.stride ? rounded(sum) : sum)
  }
  history.steps++
}

/** Even, so that it can be halved. */
const maxEntries = ({ load }: HistoryEntry): number =>
  2 * Math.floor(Math.min(2048, Math.max(8, maxLoads / load.flat().length / 2)))

function halve(history: History): void {
  const pairs = Array.from({ length: history.loss.length / 2 }, (_, i) =>
    rounded(mix(entryAt(history, 2 * i), entryAt(history, 2 * i + 1), 1 / 2)),
  )
  for (const [i, entry] of pairs.entries()) put(history, i, entry)
  for (const list of [...scalars.map((name) => history[name]), history.load]) if (list) list.length = pairs.length
  history.stride *= 2
}

/** The lists of numbers. */
const scalars = ['loss', 'dropped', 'learningRate', 'stepSeconds'] as const

const scalarsOf = (of: (name: (typeof scalars)[number]) => number): Omit<HistoryEntry, 'load'> => ({
  loss: of('loss'),
  dropped: of('dropped'),
  learningRate: of('learningRate'),
  stepSeconds: of('stepSeconds'),
})

const entryAt = (history: History, i: number): HistoryEntry => ({
  ...scalarsOf((name) => history[name]?.[i] ?? 0),
  load: history.load[i],
})

function put(history: History, i: number, entry: HistoryEntry): void {
  for (const name of scalars) {
    const list = history[name]
    if (list) list[i] = entry[name]
  }
  history.load[i] = entry.load
}

/** a + (b − a) · share */
function mix(a: HistoryEntry, b: HistoryEntry, share: number): HistoryEntry {
  const between = (x: number, y: number): number => x + (y - x) * share
  return {
    ...scalarsOf((name) => between(a[name], b[name])),
    load: a.load.map((layer, i) => layer.map((value, expert) => between(value, b.load[i][expert]))),
  }
}

/** As an entry of a history is stored. */
export const round = (value: number): number => Number(value.toPrecision(5))
const rounded = (entry: HistoryEntry): HistoryEntry => ({
  ...scalarsOf((name) => round(entry[name])),
  load: entry.load.map((layer) => layer.map(round)),
})

/** Maximum number of evaluations in a history. */
const maxEvaluations = 1024
/** Maximum number of characters in a sample. */
export const longestSample = 600

/** Adds an evaluation. A full history keeps every second one. */
export function recordEvaluation(history: History, evaluation: Evaluation): void {
  if (history.evaluations.length >= maxEvaluations)
    history.evaluations = history.evaluations.filter((_, i) => i % 2 === 0)
  history.evaluations.push(evaluation)
}

const nonNegative = one(numberRule({ min: 0, real: true }))
const share = one(numberRule({ min: 0, max: 1, real: true }))
const sample = one(
  textRule(new RegExp(`^.{0,${longestSample}}$`, 'su'), `must be a string of at most ${longestSample} characters`),
)

/** Validates a history from a file, for a run with so many completed steps. */
export const historySchema =
  ({ steps, layers, experts }: { steps: number; layers: number; experts: number }): Schema =>
  (value) => {
    const { stride } = (value ?? {}) as Partial<History>
    const entries = typeof stride === 'number' ? Math.ceil(steps / stride) : 0
    return record({
      stride: one(numberRule({ min: 1 })),
      steps: one(numberRule({ min: steps, max: steps })),
      loss: list(nonNegative, entries),
      dropped: list(share, entries),
      load: list(list(list(share, experts), layers), entries),
      learningRate: ifGiven(list(nonNegative, entries)),
      stepSeconds: ifGiven(list(nonNegative, entries)),
      evaluations: list(
        record({ step: one(numberRule({ min: 0, max: steps })), loss: nonNegative, sample }),
        0,
        maxEvaluations,
      ),
      seconds: nonNegative,
      ngrams: ifGiven(list(nonNegative, 0, ngramNames.length)),
      prompt: ifGiven(sample),
      parameters: ifGiven(one(numberRule({ min: 1 }))),
      charactersPerStep: ifGiven(one(numberRule({ min: 1 }))),
    })(value)
  }
