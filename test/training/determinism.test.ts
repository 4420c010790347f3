import { describe, expect, it } from 'vitest'
import { emulated, runChild } from '../support/child.js'
import { long } from '../support/numbers.js'

interface Runs {
  variant: string
  main: Record<string, string>
  worker: Record<string, string>
}

const steps = emulated ? 5 : long ? 50 : 4

// Of the CPU: a GPU computes the same with each.
const isas = process.env.ST_MOE_TEST_DEVICE
  ? ['baseline']
  : ['baseline', 'avx2', 'avx512', 'avx512bf16', 'amx', 'neonbf16']

/** null if this machine lacks the instruction set. */
async function runs(isa: string): Promise<Runs | null> {
  const { code, stdout, stderr } = await runChild('training-run.mjs', [String(steps)], { env: { ST_MOE_ISA: isa } })
  if (stderr.includes('[st-moe] ST_MOE_ISA must be one of ')) return null
  expect([code, stderr]).toEqual([0, ''])
  return JSON.parse(stdout)
}

describe(`SHA-256 of all parameters after ${steps} steps, dropout and random routing included`, () => {
  for (const isa of isas) {
    it(`is the same on 1, 2 and 3 threads, in the main thread and in a worker, run to run: ${isa}`, async (context) => {
      const first = await runs(isa)
      if (first === null) return context.skip(`this machine has no ${isa}`)
      expect(first.variant).toBe(isa)
      const hashes = [...Object.values(first.main), ...Object.values(first.worker), (await runs(isa))!.main[1]]
      expect(hashes[0]).toMatch(/^[0-9a-f]{64}$/)
      expect(hashes).toEqual(Array(7).fill(hashes[0]))
    })
  }
})
