import { describe, expect, test } from 'vitest'
import {
  gpus,
  kernelName,
  launchSeconds,
  launchTable,
  ratioOn,
  reached,
  readWork,
  secondsOn,
  summary,
} from '../../bench/roofline-model.js'

const [h100] = gpus
const kernel = {
  kernel: 'void st_moe::cuda::rows_kernel<256, st_moe::cuda::LoadRow<float, st_moe::cuda::Bf16, 8> >(long)',
  ...{ blocks: 100, threads: 256, blocksRun: 100, barriers: 0, wavefronts: 30, fewestWavefronts: 20 },
  ...{ flops: 9e6, issued: 5e6, issued64: 1e6 },
  ...{ read: 6.4e8, readSectors: 3e7, readDistinct: 3.2e8, write: 3.2e8, writeSectors: 1e7, writeDistinct: 3.2e8 },
}
const gemm = { gemm: 'bf16 → f32', m: 1000, n: 2000, k: 3000, count: 4, flops: 4.8e10, bytes: 1e6 }
const lines = [kernel, gemm, { fill: true, read: 0, write: 64 }, { copy: true, read: 4, write: 0 }]
const works = readWork(`${lines.map((line) => JSON.stringify(line)).join('\n')}\n`)

describe('the roofline model', () => {
  test('names of kernels', () => {
    expect(kernelName(kernel.kernel)).toBe('LoadRow')
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

  test('a grouped GEMM is one launch', () => {
    const groups = { gemm: 'bf16 → bf16', groups: 8, flops: 4.8e10, bytes: 1e6 }
    const [work] = readWork(`${JSON.stringify(groups)}\n`)
    expect(work).toMatchObject({ name: 'GEMM of 8 groups, bf16 → bf16', isGemm: true, launches: 1, flops: 4.8e10 })
    expect(secondsOn(h100, work)).toBeCloseTo(secondsOn(h100, works[1]), 12)
  })

  test('what a line says', () => {
    expect(works.map(({ name }) => name)).toEqual(['LoadRow', 'GEMM 4 × 1000 × 2000 × 3000, bf16 → f32', 'fill'])
    const [row] = works
    expect(row).toMatchObject({ bytes: 6.4e8, moved: 4e7 * 32, efficiency: 0.75, conflicts: 1.5, isGemm: false })
    expect(row).toMatchObject({ flops: 9e6, issued: 5e6, issued64: 1e6 })
  })

  test('the slowest of memory, cache, arithmetic and launch', () => {
    const [row, product, small] = works
    expect(secondsOn(h100, row)).toBeCloseTo(1.28e9 / h100.cache, 12)
    expect(secondsOn(h100, { ...row, moved: row.bytes })).toBeCloseTo(6.4e8 / (h100.memory * reached.memory), 12)
    expect(secondsOn(h100, product)).toBeCloseTo(4.8e10 / (h100.low * reached.low), 12)
    expect(secondsOn(h100, { ...product, lowPrecision: false })).toBeCloseTo(4.8e10 / (h100.f32 * reached.vector), 12)
    expect(secondsOn(h100, { ...row, issued: 1e12 })).toBeCloseTo(2e12 / (h100.f32 * reached.vector), 12)
    expect(secondsOn(h100, { ...row, issued64: 1e12 })).toBeCloseTo(2e12 / (h100.f64 * reached.vector), 12)
    expect(secondsOn(h100, small)).toBe(launchSeconds)
    expect(ratioOn(h100, works)).toBeCloseTo(
      (secondsOn(h100, row) + secondsOn(h100, product) + launchSeconds) / secondsOn(h100, product),
    )
  })

  test('equal launches share a row', () => {
    const pass = { shape: 'small', pass: 'forward', works: [...works, ...works] }
    const table = launchTable(pass, h100)
    expect(table.split('\n').length).toBe(2 + works.length)
    expect(table).toMatch(/\| LoadRow +\| 2 +\| 0\.0180 +\| 1,280 +\| 2,560 +\| 0.75 +\| 1.50× +\| \d+ µs/)
    expect(table).toMatch(/\| GEMM [^|]+\| 2 +\| 96\.0 +\|/)
    expect(summary([pass])).toMatch(/\| small \| forward \| 4 \+ 2 /)
  })
})
