import { readFileSync } from 'node:fs'
import type { Spread } from '../cli/index.js'

export type Params = Record<string, string | number>

/** `time` is that of the case ÷ that of the other, `speed` the inverse; `flops` and `bytes` compare work per second. */
export type Measure = 'time' | 'speed' | 'flops' | 'bytes'

/** What is known of a case besides its times. */
export interface Facts {
  name: string
  params: Params
  /** Runs per sample. */
  iterations: number
  /** Work of one run. */
  flops?: number
  bytes?: number
  /** Relative error of what was computed, if it was checked. */
  error?: number
  /** Fractions of the assignments that are dispatched and of the capacity that they use. */
  kept?: number
  occupancy?: number
  /** Launches of one run on a GPU. */
  kernels?: number
  gemms?: number
}

/** A case vs. another one: taken inside each repetition, then the median over repetitions. */
export interface Ratio {
  name: string
  params: Params
  measure: Measure
  /** Repetitions in which both ran. */
  turns: number
  wall: Spread
}

/** What was measured of one case. */
export interface Result extends Facts {
  /** Milliseconds of one run, by the clock of the host and by that of a GPU. */
  wallMs: Spread
  deviceMs?: Spread
  /** Wall times of the repetitions. */
  samples: number[]
  ratios: Ratio[]
}

/** Memory in bytes at its most, in its own process, beyond parameters and gradients. */
export interface MemoryResult {
  implementation: string
  tokens: number
  /** Of the process, by the operating system. */
  resident: number
  /** As memory() counts it; only ours. */
  counted?: number
}

export interface Report {
  date: string
  command: string
  quick: boolean
  machine: { cpu: string; cores: number; memoryGiB: number; system: string }
  /** Average number of busy processes in the minute before. */
  load: number
  versions: Record<string, string>
  results: Result[]
  memory: MemoryResult[]
}

/** What the suites are told. */
export interface Bench {
  threads: readonly number[]
  repetitions: number
  /** Small shapes and two turns: tests the program, says nothing about speed. */
  quick: boolean
  /** Whether PyTorch runs beside. */
  peers: boolean
}

/** What a suite has found. */
export interface Found {
  results: Result[]
  memory?: MemoryResult[]
  versions?: Record<string, string>
}

export type Suite = (bench: Bench) => Promise<Found>

export const keyOf = ({ name, params }: Pick<Facts, 'name' | 'params'>): string =>
  [name, ...Object.entries(params).map(([key, value]) => `${key}=${value}`)].join(' ')

const matches = (params: Params, wanted: Params): boolean =>
  Object.entries(wanted).every(([key, value]) => params[key] === value)

export const find = (report: Report, name: string, params: Params = {}): Result[] =>
  report.results.filter((result) => result.name === name && matches(result.params, params))

export const ratioTo = (result: Result, other: string, measure: Measure, params: Params = {}): Ratio | undefined =>
  result.ratios.find((ratio) => ratio.name === other && ratio.measure === measure && matches(ratio.params, params))

/** Reads a report of `npm run bench`. */
export function readReport(path: string): Report {
  const report = JSON.parse(readFileSync(path, 'utf8')) as Partial<Report>
  if (!Array.isArray(report.results) || !Array.isArray(report.memory) || !report.machine)
    throw new Error(`${path} is not a report of npm run bench`)
  return report as Report
}
