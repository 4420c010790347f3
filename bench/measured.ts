import { setTimeout as pause } from 'node:timers/promises'
import { spreadOf } from '../cli/index.js'
import type { Facts, Measure, Result } from './report.js'

/** One of a group of cases that were timed in turns: its samples. st-moe-bench and cuda_layer_bench write such groups. */
export interface Case extends Facts {
  wall: number[]
  /** By the clock of a GPU. */
  device?: number[]
  /** What it is compared with, by index in the group. */
  against: { index: number; measure: Measure }[]
}

/** A ratio is taken inside a turn, so that a machine that others load for a while slows both sides of it. */
function ratios(own: Case, other: Case, measure: Measure): number[] {
  const [ours, theirs] = own.device && other.device ? [own.device, other.device] : [own.wall, other.wall]
  const turns = Math.min(ours.length, theirs.length)
  return Array.from({ length: turns }, (_, i) => {
    const speed = theirs[i] / ours[i]
    if (measure === 'time') return 1 / speed
    return measure === 'speed' ? speed : (own[measure]! / other[measure]!) * speed
  })
}

/** The statistics of a group. */
export function evaluated(group: readonly Case[]): Result[] {
  return group.map((own) => {
    const { wall, device, against, ...facts } = own
    return {
      ...facts,
      wallMs: spreadOf(wall),
      ...(device && { deviceMs: spreadOf(device) }),
      samples: wall,
      ratios: against.map(({ index, measure }) => {
        const { name, params } = group[index]
        const each = ratios(own, group[index], measure)
        return { name, params, measure, turns: each.length, wall: spreadOf(each) }
      }),
    }
  })
}

/** What the lines of st-moe-bench or cuda_layer_bench say: groups of cases, and parts that failed or were left out. */
export interface Line {
  cases?: Case[]
  name?: string
  params?: Facts['params']
  failed?: string
  leftOut?: string
}

export interface Participant extends Omit<Facts, 'iterations'> {
  /** Runs once. Returns milliseconds. */
  time(): number | Promise<number>
  /** The most repetitions, where a run takes long. */
  atMost?: number
  against?: { other: Participant; measure: Measure }[]
}

/** Milliseconds that `run` takes. */
export function clock(run: () => void): number {
  const start = performance.now()
  run()
  return performance.now() - start
}

/**
 * Times the participants in turns, every second turn backwards, so that what slows the machine for a while slows all of
 * them. One run of each before is not counted, except of those that run once.
 */
export async function inTurns(participants: readonly Participant[], repetitions: number): Promise<Result[]> {
  const group = participants.map(
    ({ time: _time, atMost: _atMost, against = [], ...facts }): Case => ({
      ...facts,
      iterations: 1,
      wall: [],
      against: against.map(({ other, measure }) => ({ index: participants.indexOf(other), measure })),
    }),
  )
  const order = [...participants.keys()]
  for (let turn = -1; turn < repetitions; turn++) {
    for (const i of turn % 2 === 0 ? order : order.toReversed()) {
      const times = Math.min(participants[i].atMost ?? repetitions, repetitions)
      if (turn < 0 ? times === 1 && repetitions > 1 : turn >= times) continue
      await pause(10) // threads of the one before, which may still spin, go to sleep
      const ms = await participants[i].time()
      if (turn >= 0) group[i].wall.push(ms)
    }
  }
  return evaluated(group)
}
