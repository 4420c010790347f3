import type { Evaluation } from '../trainer/evaluation.js'
import { type History, round } from '../trainer/history.js'
import { ngramNames } from '../trainer/ngram.js'
import { type RunOptions, usedOptions } from '../trainer/options.js'
import { visible, visibleName } from '../visible.js'
import type { From, Part, RunAbout, Status } from './messages.js'

/** A run as a page shows it. */
export interface ShownRun {
  about: RunAbout
  history: History
}

/** Names and values are made harmless here, so that a page shows no control characters of an untrusted folder. */
export function aboutRun(folder: string, options: RunOptions, text: string, history: History): RunAbout {
  const flags = usedOptions(options).map((name) => [name, visibleName(String(options[name as keyof RunOptions]))])
  return {
    name: visibleName(folder),
    text: visibleName(text),
    steps: options.steps,
    charactersPerStep: history.charactersPerStep ?? options.batch * options.context,
    experts: options.experts,
    flags: Object.fromEntries(flags),
  }
}

/** What a page has: complete entries and columns, and evaluations. */
export interface Position {
  stride: number
  entries: number
  columnStride: number
  columns: number
  evaluations: number
  /** Of the last of these evaluations. */
  evaluatedAt: number
}

export const nothing: Position = {
  stride: 0,
  entries: 0,
  columnStride: 0,
  columns: 0,
  evaluations: 0,
  evaluatedAt: -1,
}

/** Numbers in the columns of a part, which limits its size to about 2 MB. */
const maxLoads = 2 ** 18

/** Entries per column of the expert load: a power of two, as a history doubles its stride. */
function entriesPerColumn({ load }: History): number {
  const size = load[0]?.flat().length ?? 1
  const most = Math.max(2, Math.min(128, 2 ** Math.floor(Math.log2(maxLoads / size))))
  return 2 ** Math.max(0, Math.ceil(Math.log2(load.length / most)))
}

/** What a page at `position` lacks of a history, and where it is then. */
export function partOf(history: History, position: Position, run: number, status: Status): [Part, Position] {
  const {
    steps,
    seconds,
    stride,
    loss,
    dropped,
    learningRate,
    stepSeconds,
    load,
    evaluations,
    ngrams = [],
    parameters,
  } = history
  const perColumn = entriesPerColumn(history)
  const columnStride = stride * perColumn
  const entryFrom = stride === position.stride ? position.entries : 0
  const columnFrom = columnStride === position.columnStride ? position.columns : 0
  const same = evaluations[position.evaluations - 1]?.step === position.evaluatedAt
  const evaluationFrom = same ? position.evaluations : 0
  const part: Part = {
    run,
    steps,
    seconds,
    stride,
    entries: from(entryFrom, loss.length, (i) => [
      round(loss[i]),
      round(dropped[i]),
      ...(learningRate && stepSeconds ? ([round(learningRate[i]), round(stepSeconds[i])] as const) : ([] as const)),
    ]),
    columnStride,
    columns: from(columnFrom, Math.ceil(load.length / perColumn), (i) =>
      meanLoad(load.slice(i * perColumn, (i + 1) * perColumn)),
    ),
    evaluations: from(evaluationFrom, evaluations.length, (i) => shownEvaluation(evaluations[i])),
    baselines: Object.fromEntries(ngrams.map((loss, i) => [ngramNames[i], loss])),
    prompt: visible(history.prompt ?? ''),
    ...(parameters !== undefined && { parameters }),
    status,
  }
  const next = {
    stride,
    entries: Math.floor(steps / stride),
    columnStride,
    columns: Math.floor(steps / columnStride),
    evaluations: evaluations.length,
    evaluatedAt: evaluations.at(-1)?.step ?? -1,
  }
  return [part, next]
}

const from = <T>(start: number, end: number, entry: (i: number) => T): From<T> => ({
  from: start,
  list: Array.from({ length: end - start }, (_, i) => entry(start + i)),
})

const shownEvaluation = (evaluation: Evaluation): Evaluation => ({ ...evaluation, sample: visible(evaluation.sample) })

const meanLoad = (loads: readonly number[][][]): number[][] =>
  loads[0].map((layer, i) =>
    layer.map((_, expert) => round(loads.reduce((sum, load) => sum + load[i][expert], 0) / loads.length)),
  )
