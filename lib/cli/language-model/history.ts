import { list, numberRule, one, record, type Schema, textRule } from '../rules.js'

/** What a run remembers for its report; travels in the checkpoint as JSON. */
export interface History {
  /** Steps done. */
  steps: number
  /** Steps that an entry of `loss`, `dropped` and `load` is the mean of; the last may have fewer. */
  stride: number
  /** Training loss, nats per character. */
  loss: number[]
  /** Share of characters that no expert had room for, mean over the layers. */
  dropped: number[]
  /** [entry][layer][expert]: share of the characters whose first choice it is. */
  load: number[][][]
  evaluations: Evaluation[]
  /** Spent in training, evaluations left out. */
  seconds: number
}

export interface Evaluation {
  /** Steps done. */
  step: number
  /** On held-out text, nats per character. */
  loss: number
  sample: string
}

/** One step of a {@link History}. */
export interface HistoryEntry {
  loss: number
  dropped: number
  load: number[][]
}

export const emptyHistory = (): History => ({
  steps: 0,
  stride: 1,
  loss: [],
  dropped: [],
  load: [],
  evaluations: [],
  seconds: 0,
})

/** Numbers that the loads may hold in all: about 30 MB of JSON. */
const maxLoads = 4e6

/** Adds a step. A history that gets long goes on with entries of twice as many steps. */
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

/** Even, so that halving leaves whole entries. */
const maxEntries = ({ load }: HistoryEntry): number =>
  2 * Math.floor(Math.min(2048, Math.max(8, maxLoads / load.flat().length / 2)))

function halve(history: History): void {
  const pairs = Array.from({ length: history.loss.length / 2 }, (_, i) =>
    rounded(mix(entryAt(history, 2 * i), entryAt(history, 2 * i + 1), 1 / 2)),
  )
  for (const [i, entry] of pairs.entries()) put(history, i, entry)
  for (const list of [history.loss, history.dropped, history.load]) list.length = pairs.length
  history.stride *= 2
}

const entryAt = ({ loss, dropped, load }: History, i: number): HistoryEntry => ({
  loss: loss[i],
  dropped: dropped[i],
  load: load[i],
})

function put(history: History, i: number, { loss, dropped, load }: HistoryEntry): void {
  history.loss[i] = loss
  history.dropped[i] = dropped
  history.load[i] = load
}

/** a + (b − a) · share */
function mix(a: HistoryEntry, b: HistoryEntry, share: number): HistoryEntry {
  const between = (x: number, y: number): number => x + (y - x) * share
  return {
    loss: between(a.loss, b.loss),
    dropped: between(a.dropped, b.dropped),
    load: a.load.map((layer, i) => layer.map((value, expert) => between(value, b.load[i][expert]))),
  }
}

const round = (value: number): number => Number(value.toPrecision(5))
const rounded = ({ loss, dropped, load }: HistoryEntry): HistoryEntry => ({
  loss: round(loss),
  dropped: round(dropped),
  load: load.map((layer) => layer.map(round)),
})

/** Evaluations that a history holds at most. */
const maxEvaluations = 1024
/** Characters of a sample at most. */
export const longestSample = 600

/** Adds an evaluation. A history that has many goes on with every second of them. */
export function recordEvaluation(history: History, evaluation: Evaluation): void {
  if (history.evaluations.length >= maxEvaluations)
    history.evaluations = history.evaluations.filter((_, i) => i % 2 === 0)
  history.evaluations.push(evaluation)
}

const loss = one(numberRule({ min: 0, real: true }))
const share = one(numberRule({ min: 0, max: 1, real: true }))
const sample = one(
  textRule(new RegExp(`^.{0,${longestSample}}$`, 'su'), `must be a text of at most ${longestSample} characters`),
)

/** What a history read from a file must be, of a run that has done so many steps. */
export const historySchema =
  ({ steps, layers, experts }: { steps: number; layers: number; experts: number }): Schema =>
  (value) => {
    const { stride } = (value ?? {}) as Partial<History>
    const entries = typeof stride === 'number' ? Math.ceil(steps / stride) : 0
    return record({
      stride: one(numberRule({ min: 1 })),
      steps: one(numberRule({ min: steps, max: steps })),
      loss: list(loss, entries),
      dropped: list(share, entries),
      load: list(list(list(share, experts), layers), entries),
      evaluations: list(record({ step: one(numberRule({ min: 0, max: steps })), loss, sample }), 0, maxEvaluations),
      seconds: one(numberRule({ min: 0, real: true })),
    })(value)
  }

export const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length
