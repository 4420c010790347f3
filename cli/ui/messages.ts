import type { Evaluation } from '../trainer/evaluation.js'

/** What the server tells a page, as server-sent events. */

/** A run, without its history. */
export interface RunAbout {
  /** Its folder. */
  name: string
  text: string
  /** Planned steps. */
  steps: number
  charactersPerStep: number
  experts: number
  /** The flags that the run uses. */
  flags: Record<string, string>
}

/** The event `runs`: the runs of the page. */
export type RunsMessage = RunAbout[]

/**
 * The event `part`: news of a run. Every list replaces what the page has from an index on, so that a part that is
 * repeated, or sent to a page that has nothing, is right, too.
 */
export interface Part {
  /** Index of the run. */
  run: number
  steps: number
  seconds: number
  /** Steps per entry of `entries`. */
  stride: number
  entries: From<Entry>
  /** Expert load: columns [layer][expert] of `columnStride` steps. */
  columnStride: number
  columns: From<number[][]>
  evaluations: From<Evaluation>
  /** Held-out losses of n-gram baselines by name. */
  baselines: Record<string, number>
  prompt: string
  /** Of the model, if recorded. */
  parameters?: number
  status: Status
}

/** The entries of a list from an index on. */
export interface From<T> {
  from: number
  list: T[]
}

/** Loss, fraction of dropped tokens, and if recorded learning rate and seconds per step. */
export type Entry = [loss: number, dropped: number, learningRate?: number, stepSeconds?: number]

/** Only a running one changes. */
export interface Status {
  state: 'running' | 'finished' | 'stopped' | 'failed'
  /** Why it failed. */
  reason?: string
}

/** The runs of a page, as received. */
export class Received {
  runs: ReceivedRun[] = []

  setRuns(message: RunsMessage): void {
    this.runs = message.map((about) => ({ about, part: null }))
  }

  addPart(part: Part): void {
    const run = this.runs[part.run]
    const before = run.part
    run.part = {
      ...part,
      entries: joined(before?.entries, part.entries),
      columns: joined(before?.columns, part.columns),
      evaluations: joined(before?.evaluations, part.evaluations),
    }
  }
}

export interface ReceivedRun {
  about: RunAbout
  /** All parts in one; null before the first. */
  part: Part | null
}

function joined<T>(before: From<T> | undefined, { from, list }: From<T>): From<T> {
  return { from: 0, list: [...(before?.list.slice(0, from) ?? []), ...list] }
}
