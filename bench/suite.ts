import type { MemoryResult, Result } from './report.js'

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
