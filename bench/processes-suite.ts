import { spreadOf } from '../cli/index.js'
import { processBackends } from '../lib/index.js'
import { type Case, evaluated } from './measured.js'
import { answerOfRanks } from './ranks-answer.js'
import type { Bench, Found } from './report.js'

/** The milliseconds of each turn, by the names of bench/ranks.ts. */
const samplesOf = (processes: number, args: readonly (string | number)[]): Promise<Record<string, number[]>> =>
  answerOfRanks(new URL('ranks.ts', import.meta.url), processes, args)

/**
 * Two processes with one thread each: the layer of the README vs. one process with two threads, forward and backward; and a
 * step of the demo's model on half of its batch vs. that step without the exchange of gradients and the exchange alone.
 */
export async function processesSuite({ repetitions, quick }: Bench): Promise<Found> {
  const [{ available, reason }] = processBackends()
  if (!available) {
    console.error(`The suite processes is left out, because it needs an MPI library. ${reason}`)
    return { results: [] }
  }
  const size = quick ? 'quick' : 'usual'
  const turns = quick ? 2 : 10
  const apart: number[] = []
  const together: number[] = []
  for (let i = 0; i < repetitions; i++) {
    apart.push(spreadOf((await samplesOf(2, ['layer', 1, turns, size])).layer).median)
    together.push(spreadOf((await samplesOf(1, ['layer', 2, turns, size])).layer).median)
  }
  const { compute, exchange, step } = await samplesOf(2, ['demo', 1, 15 * repetitions, size])
  const of = (name: string, wall: number[], params: Case['params'], against: Case['against']): Case => {
    return { name: `st-moe/processes/${name}`, params, iterations: 1, wall, against }
  }
  const two = { processes: 2, threads: 1 }
  return {
    results: [
      ...evaluated([
        of('layer', apart, two, [{ index: 1, measure: 'speed' }]),
        of('layer', together, { processes: 1, threads: 2 }, []),
      ]),
      ...evaluated([
        of('demo step', step, two, [{ index: 1, measure: 'time' }]),
        of(
          'compute and 1.1 exchanges',
          compute.map((time, i) => time + 1.1 * exchange[i]),
          two,
          [],
        ),
        of('exchange', exchange, two, []),
      ]),
    ],
  }
}
