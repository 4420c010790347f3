import { setTimeout as pause } from 'node:timers/promises'
import type { Measure, Params, Ratio, Result } from './report.js'
import { spreadOf } from './statistics.js'

/** Milliseconds of one run: by the clock, and of all threads of the process together. */
export interface Clocks {
  wall: number
  cpu: number
}

export interface Participant {
  name: string
  params: Params
  /** Runs once. */
  time(): Clocks | Promise<Clocks>
  /** The most repetitions, where a run takes long. */
  atMost?: number
  flops?: number
  kept?: number
  occupancy?: number
  error?: number
  against?: { other: Participant; measure: 'time' | 'speed' }[]
}

export function clock(run: () => void): Clocks {
  const cpu = process.cpuUsage()
  const start = performance.now()
  run()
  const wall = performance.now() - start
  const { user, system } = process.cpuUsage(cpu)
  return { wall, cpu: (user + system) / 1e3 }
}

/**
 * Times the participants in turns, every second turn backwards, so that what slows the machine for a while slows all of
 * them. One run of each before is not counted, except of those that run once.
 */
export async function inTurns(participants: readonly Participant[], repetitions: number): Promise<Result[]> {
  const samples = new Map<Participant, Clocks[]>(participants.map((participant) => [participant, []]))
  const timesOf = ({ atMost = repetitions }: Participant): number => Math.min(atMost, repetitions)
  for (let turn = -1; turn < repetitions; turn++) {
    for (const participant of turn % 2 === 0 ? participants : [...participants].reverse()) {
      if (turn < 0 ? timesOf(participant) === 1 && repetitions > 1 : turn >= timesOf(participant)) continue
      await pause(10) // threads of the one before, which may still spin, go to sleep
      const clocks = await participant.time()
      if (turn >= 0) samples.get(participant)!.push(clocks)
    }
  }
  return participants.map((participant) => resultOf(participant, samples))
}

function resultOf(participant: Participant, all: ReadonlyMap<Participant, Clocks[]>): Result {
  const { name, params, flops, kept, occupancy, error, against = [] } = participant
  const own = all.get(participant)!
  return {
    name,
    params,
    iterations: 1,
    flops,
    error,
    kept,
    occupancy,
    wallMs: spreadOf(own.map(({ wall }) => wall)),
    cpuMs: spreadOf(own.map(({ cpu }) => cpu)),
    samples: own.map(({ wall }) => wall),
    ratios: against.map(({ other, measure }) => ratioOf(own, other, all.get(other)!, measure)),
  }
}

function ratioOf(own: readonly Clocks[], other: Participant, theirs: readonly Clocks[], measure: Measure): Ratio {
  const count = Math.min(own.length, theirs.length)
  const by = (which: 'wall' | 'cpu') =>
    spreadOf(
      Array.from({ length: count }, (_, turn) => {
        const ratio = theirs[turn][which] / own[turn][which]
        return measure === 'time' ? 1 / ratio : ratio
      }),
    )
  return { name: other.name, params: other.params, measure, turns: count, wall: by('wall'), cpu: by('cpu') }
}
