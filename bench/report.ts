import { readFileSync } from 'node:fs'
import type { Spread } from './statistics.js'

export type Params = Record<string, string | number>

/** `time` is that of the case ÷ that of the other, `speed` the inverse; `flops` and `bytes` compare work per second. */
export type Measure = 'time' | 'speed' | 'flops' | 'bytes'

/** A case beside another one: taken inside each repetition, the median over repetitions. */
export interface Ratio {
  name: string
  params: Params
  measure: Measure
  /** Repetitions in which both ran; as many as there are samples where nothing is said. */
  turns?: number
  wall: Spread
  cpu: Spread
}

/** What was measured of one case. st-moe-bench writes the same. */
export interface Result {
  name: string
  params: Params
  iterations: number
  flops?: number
  bytes?: number
  /** Relative error of what was computed, where it was checked. */
  error?: number
  /** Shares of the assignments that are kept and of the slots that are full. */
  kept?: number
  occupancy?: number
  /** Milliseconds of one run, by the clock and of all threads together. */
  wallMs: Spread
  cpuMs: Spread
  /** Wall times of the repetitions. */
  samples: number[]
  ratios: Ratio[]
}

/** Memory in bytes at its most, in a process of its own, beyond parameters and gradients. */
export interface MemoryResult {
  implementation: string
  tokens: number
  /** Of the process, by the operating system. */
  resident: number
  /** As memory() counts it; only ours. */
  counted?: number
}

export interface Machine {
  cpu: string
  cores: number
  memoryGiB: number
  system: string
}

export interface Report {
  date: string
  command: string
  quick: boolean
  machine: Machine
  /** Average number of busy processes in the minute before. */
  load: number
  versions: Record<string, string>
  results: Result[]
  memory: MemoryResult[]
}

export const keyOf = ({ name, params }: { name: string; params: Params }): string =>
  [name, ...Object.entries(params).map(([key, value]) => `${key}=${value}`)].join(' ')

export function find(report: Report, name: string, params: Params = {}): Result[] {
  const wanted = Object.entries(params)
  return report.results.filter(
    (result) => result.name === name && wanted.every(([key, value]) => result.params[key] === value),
  )
}

export function ratioTo(result: Result, other: string, measure: Measure, params: Params = {}): Ratio | undefined {
  const wanted = Object.entries(params)
  return result.ratios.find(
    (ratio) =>
      ratio.name === other && ratio.measure === measure && wanted.every(([key, value]) => ratio.params[key] === value),
  )
}

/** Reads a report of `npm run bench`. */
export function readReport(path: string): Report {
  const report = JSON.parse(readFileSync(path, 'utf8')) as Partial<Report>
  if (!Array.isArray(report.results) || !Array.isArray(report.memory) || !report.machine)
    throw new Error(`${path} is not a report of npm run bench`)
  return report as Report
}
