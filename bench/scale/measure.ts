import { cpus } from 'node:os'
import { spreadOf } from '../../cli/index.js'
import { answerOfRanks } from '../ranks-answer.js'

/** A sample: milliseconds of a call, and how many processors other programs used meanwhile. */
export interface Sample {
  time: number
  others: number
}

/** The median of the samples in milliseconds with its quartiles, and the median of what others used. */
export interface Time {
  median: number
  low: number
  high: number
  count: number
  others: number
}

/** What was measured, as measured.json keeps it: times by number of ranks, then by name. */
export interface Measured {
  date: string
  processor: string
  cores: number
  times: Record<number, Record<string, Time>>
}

/** The time by some samples. */
export function timeOf(samples: readonly Sample[]): Time {
  const [{ median, low, high }, others] = (['time', 'others'] as const).map((name) =>
    spreadOf(samples.map((sample) => sample[name])),
  )
  return { median, low, high, count: samples.length, others: others.median }
}

const run = (processes: number, turns: number): Promise<Record<string, Sample[]>> =>
  answerOfRanks(new URL('rank.ts', import.meta.url), processes, [turns])

/** Measures 1, 2 and 4 ranks of one thread, in turns, in `runs` runs of each with `turns` samples. */
export async function measure(runs: number, turns: number, report: (text: string) => void): Promise<Measured> {
  const [{ model }, { length }] = [cpus()[0], cpus()]
  const found = new Map<number, Record<string, Sample[]>>()
  for (let i = 0; i < runs; i++)
    for (const ranks of [1, 2, 4]) {
      const all = found.get(ranks) ?? {}
      found.set(ranks, all)
      for (const [name, samples] of Object.entries(await run(ranks, turns)))
        all[name] = [...(all[name] ?? []), ...samples]
      report(`run ${i + 1} of ${runs}, ${ranks} ranks`)
    }
  const timesOf = (all: Record<string, Sample[]>) =>
    Object.fromEntries(Object.entries(all).map(([name, samples]) => [name, timeOf(samples)]))
  return {
    ...{ date: new Date().toISOString().slice(0, 10), processor: model, cores: length },
    times: Object.fromEntries([...found].map(([ranks, all]) => [ranks, timesOf(all)])),
  }
}
