import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { estimates } from '../../bench/roofline-estimates.js'
import {
  gemmsAlone,
  gpus,
  isExpertGemm,
  launchSeconds,
  limitsOn,
  lostBytes,
  memoryBytes,
  type Pass,
  ratioOn,
  reached,
  secondsOn,
  secondsPerRead,
  waitSeconds,
} from '../../bench/roofline-model.js'
import { launchTable, lossTable, summary } from '../../bench/roofline-tables.js'
import { instructionsOf, kernelName, readWork, type Work } from '../../bench/roofline-work.js'

const [h100] = gpus
const kernel = {
  kernel: 'void st_moe::cuda::rows_kernel<256, st_moe::cuda::Embed<float, st_moe::cuda::Bf16, 8> >(long)',
  ...{ blocks: 100, threads: 256, blocksRun: 100, barriers: 0, wavefronts: 30, fewestWavefronts: 20, longest: 7 },
  ...{ flops: 9e6, issued: 5e6, issued64: 1e6 },
  ...{ read: 6.4e8, readSectors: 3e7, readDistinct: 3.2e8, write: 3.2e8, writeSectors: 1e7, writeDistinct: 3.2e8 },
  reads: [
    [3e8, 9.4e8],
    [2e7, 2e7],
  ],
}
const gemm = { gemm: 'bf16 → f32', m: 1000, n: 2000, k: 3000, count: 4, flops: 4.8e10, bytes: 1e6 }
const lines = [kernel, gemm, { fill: true, read: 0, write: 64 }, { copy: true, read: 0, write: 4 }]
const workOf = (...all: object[]) => readWork(`${all.map((line) => JSON.stringify(line)).join('\n')}\n`)
const works = workOf(...lines)
const [row, product, small] = works

describe('what a line of the emulator says', () => {
  test('names of kernels', () => {
    expect(kernelName(kernel.kernel)).toBe('Embed')
    expect(kernelName('void st_moe::cuda::choose_kernel<float>(st_moe::cuda::Router<float>)')).toBe('choose')
    expect(kernelName('st_moe::cuda::(anonymous namespace)::slots_kernel(Slots, long)')).toBe('slots')
    expect(kernelName('void st_moe::cuda::vectors_kernel<4, st_moe::cuda::Fill<float> >(long)')).toBe('Fill')
    expect(
      kernelName('void rows_kernel<32, st_moe::cuda::Fills<st_moe::cuda::FillOperand<float, F32, Same> > >(long)'),
    ).toBe('FillOperand')
  })

  test('of a pass over rows and columns, the name of what it does with a row', () => {
    const terms = 'st_moe::cuda::GammaTerm<float>, st_moe::cuda::NormRow<float, 4> >(long, long)'
    expect(kernelName(`void st_moe::cuda::rows_and_columns_kernel<32, float, 1, ${terms}`)).toBe('NormRow')
  })

  test('a kernel, a GEMM and a fill', () => {
    expect(works.map(({ name }) => name)).toEqual(['Embed', 'GEMM 4 × 1000 × 2000 × 3000, bf16 → f32', 'fill'])
    expect(row).toMatchObject({ read: 3.2e8, reads: kernel.reads, write: 3.2e8, moved: 4e7 * 32, kind: 'kernel' })
    expect(row).toMatchObject({ efficiency: 0.75, conflicts: 1.5, longest: 7 })
    expect(row).toMatchObject({ flops: 9e6, issued: 5e6, issued64: 1e6 })
    expect(works.map(({ kind }) => kind)).toEqual(['kernel', 'strided', 'fill'])
  })

  test('copies to the host that follow each other are one wait', () => {
    const out = { copy: true, read: 4, write: 0 }
    expect(workOf(out, out, kernel, out).map(({ kind }) => kind)).toEqual(['wait', 'kernel', 'wait'])
  })

  test('instructions by what the loop reads, or by what it writes if that makes more rounds', () => {
    const code = { 'rows_kernel<256, Embed<float, Bf16, 8>>': { instructions: 100, read: 64, write: 16 } }
    expect(instructionsOf({ ...kernel, read: 6400, write: 0 }, code)).toBe(100 * 100)
    expect(instructionsOf({ ...kernel, read: 6400, write: 3200 }, code)).toBe(100 * 200)
    expect(instructionsOf({ ...kernel, kernel: 'void other_kernel(long)' }, code)).toBe(0)
  })
})

describe('the roofline model', () => {
  test('the slowest of memory, cache, arithmetic, issue and launch', () => {
    const fits: Work = { ...row, reads: [[2e7, 9.6e8]] }
    expect(secondsOn(h100, fits)).toBeCloseTo(1.28e9 / h100.cache, 12)
    expect(secondsOn(h100, { ...row, reads: [[row.read, row.read]], moved: 0 })).toBeCloseTo(
      6.4e8 / (h100.memory * reached.memory),
      12,
    )
    expect(secondsOn(h100, product)).toBeCloseTo(4.8e10 / (h100.low * reached.low), 12)
    expect(secondsOn(h100, { ...product, lowPrecision: false })).toBeCloseTo(4.8e10 / (h100.f32 * reached.vector), 12)
    expect(secondsOn(h100, { ...row, issued: 1e12 })).toBeCloseTo(2e12 / (h100.f32 * reached.vector), 12)
    expect(secondsOn(h100, { ...row, issued64: 1e12 })).toBeCloseTo(2e12 / (h100.f64 * reached.vector), 12)
    expect(secondsOn(h100, { ...row, instructions: 1e12 })).toBeCloseTo(1e12 / (132 * 128 * 1.755e9 * 0.75), 12)
    expect(secondsOn(h100, small)).toBe(launchSeconds)
  })

  test('what is read again of an allocation larger than the L2 cache comes from memory again', () => {
    expect(memoryBytes(h100, row)).toBe(9.6e8 + 3.2e8)
    expect(memoryBytes(h100, { ...row, reads: [[4e7, 9e8]] })).toBe(4e7 + 3.2e8)
    expect(memoryBytes(h100, { ...row, reads: [[4.1e7, 9e8]] })).toBe(9e8 + 3.2e8)
    const small = [3e7, 9e8] as const
    expect(memoryBytes(h100, { ...row, reads: [small, small] })).toBe(6e7 + 3.2e8)
  })

  test("the router's kernels wait for each read", () => {
    const { latency } = limitsOn(h100, { ...small, name: 'scan', longest: 5 })
    expect(latency).toBeCloseTo(launchSeconds + 5 * secondsPerRead.scan, 12)
    expect(limitsOn(h100, { ...small, longest: 5 }).latency).toBe(launchSeconds)
  })

  test('a wait of the host has its own time', () => {
    const [wait] = workOf({ copy: true, read: 4, write: 0 })
    expect(secondsOn(h100, wait)).toBe(waitSeconds)
  })

  test('a grouped GEMM is one launch, slower than a strided-batched one', () => {
    const [work] = workOf({ gemm: 'bf16 → bf16', groups: 8, flops: 4.8e10, bytes: 1e6 })
    expect(work).toMatchObject({ name: 'GEMM of 8 groups, bf16 → bf16', kind: 'grouped', flops: 4.8e10 })
    expect(secondsOn(h100, work)).toBeCloseTo(secondsOn(h100, product) / reached.grouped, 12)
    const [single] = workOf({ gemm: 'f32 → f32', groups: 8, flops: 4.8e10, bytes: 1e6 })
    expect(secondsOn(h100, single)).toBeCloseTo(4.8e10 / (h100.f32 * reached.vector), 12)
  })

  test('a single GEMM leaves multiprocessors idle', () => {
    const single = { gemm: 'bf16 → f32', m: 768, n: 1024, k: 2048, count: 1, flops: 2 * 768 * 1024 * 2048, bytes: 1e6 }
    const [few] = workOf({ ...single, flops: 1e12 })
    expect(secondsOn(h100, few)).toBeCloseTo((1e12 / (h100.low * reached.low)) * (132 / 48) + launchSeconds, 12)
    const [two] = workOf({ ...single, m: 128 * 133, n: 128, flops: 1e12 })
    expect(secondsOn(h100, two)).toBeCloseTo((1e12 / (h100.low * reached.low)) * (264 / 133) + launchSeconds, 12)
  })
})

describe('a pass', () => {
  const router = { gemm: 'f32 → f32', m: 8, n: 4096, k: 512, count: 1, flops: 1e9, bytes: 1e6 }
  const pass: Pass = { shape: 'small', pass: 'forward', experts: 8, works: [...works, ...workOf(router)] }

  test("the GEMMs alone are those of the experts, at a strided-batched call's rate", () => {
    expect(pass.works.filter((work) => isExpertGemm(pass, work))).toEqual([product])
    expect(isExpertGemm({ ...pass, experts: undefined }, pass.works[3])).toBe(true)
    expect(isExpertGemm({ ...pass, experts: 7 }, pass.works[3])).toBe(true)
    const grouped: Pass = { ...pass, works: workOf({ gemm: 'bf16 → bf16', groups: 8, flops: 4.8e10, bytes: 1e6 }) }
    expect(gemmsAlone(h100, grouped)).toBeCloseTo(secondsOn(h100, product), 12)
    expect(ratioOn(h100, grouped)).toBeCloseTo(1 / reached.grouped, 12)
  })

  test('what it loses is what its other launches move, the most first', () => {
    expect(lostBytes(h100, { ...pass, works: [...pass.works, small] })).toEqual([
      { name: 'Embed', bytes: 9.6e8 + 3.2e8 },
      { name: 'GEMM 8 × 4096 × 512, f32 → f32', bytes: 1e6 },
      { name: 'fill', bytes: 128 },
    ])
    expect(lossTable([pass], h100)).toMatch(/\| small \| forward \| 1,281 +\| Embed 1,280, GEMM 8 × [^|]+ 1\.00, fill/)
  })

  test('equal launches share a row', () => {
    const table = launchTable({ ...pass, works: [...works, ...works] }, h100)
    expect(table.split('\n').length).toBe(2 + works.length)
    expect(table).toMatch(
      /\| Embed +\| 2 +\| 0\.0180 +\| +\| 1,280 +\| 2,560 +\| 2,560 +\| 0\.75 +\| 1\.50× +\| \d+ µs/,
    )
    expect(table).toMatch(/\| GEMM [^|]+\| 2 +\| 96\.0 +\|/)
    expect(summary([{ ...pass, works: [...works, ...works] }])).toMatch(/\| small \| forward \| 4 \+ 2 /)
  })

  test('so do the GEMMs of the experts, in turn, of whose sizes one differs', () => {
    const one = { ...router, gemm: 'bf16 → f32', m: 768, k: 2048 }
    const all = workOf({ ...one, n: 20 }, { ...one, n: 10 }, { ...one, n: 20 }, { ...one, m: 512, n: 11 })
    const table = launchTable({ ...pass, works: all }, h100)
    expect(table).toMatch(/\| GEMM 768 × 10–20 × 2048, bf16 → f32 +\| 3 +\|/)
    expect(table).toMatch(/\| GEMM 512 × 11 × 2048, bf16 → f32 +\| 1 +\|/)
  })
})

test('the page is within 10 % of the estimates by hand', () => {
  const page = readFileSync(new URL('../../bench/roofline.md', import.meta.url), 'utf8')
  const [, table] = /<!-- bench:roofline-estimates -->(.*?)<!-- end -->/s.exec(page) ?? []
  const rows = table.trim().split('\n').slice(2)
  expect(rows.length).toBe(estimates.length)
  for (const line of rows) {
    const ratio = Number(line.split('|').at(-2))
    expect(ratio, line).toBeGreaterThan(0.9)
    expect(ratio, line).toBeLessThan(1.1)
  }
})
