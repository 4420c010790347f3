import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { readReport } from '../bench/report.js'
import { geometricMean, spreadOf } from '../bench/statistics.js'
import { inTurns } from '../bench/turns.js'
import { root } from './support/blocks.js'
import { pythonFor, referencePython } from './support/python.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-bench-test-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function bench(...args: string[]) {
  return spawnSync(process.execPath, ['--import', 'tsx', 'bench/run.ts', ...args], { cwd: root, encoding: 'utf8' })
}

describe('statistics', () => {
  test('median and quartiles, between neighbours', () => {
    expect(spreadOf([4, 1, 3, 2])).toEqual({ median: 2.5, low: 1.75, high: 3.25 })
    expect(spreadOf([7])).toEqual({ median: 7, low: 7, high: 7 })
    expect(() => spreadOf([])).toThrow('values must not be empty')
  })

  test('geometric mean', () => {
    expect(geometricMean([1, 4, 16])).toBeCloseTo(4, 12)
  })
})

describe('turns', () => {
  const order: string[] = []
  const participant = (name: string, times: number[], atMost?: number) => {
    const left = [...times]
    return {
      name,
      params: {},
      atMost,
      time: () => {
        order.push(name)
        const wall = left.shift()!
        return { wall, cpu: 2 * wall }
      },
    }
  }

  test('alternate, leave the warm-up out, and take ratios inside a turn', async () => {
    const theirs = participant('theirs', [99, 20, 60, 40])
    const ours = { ...participant('ours', [99, 10, 20, 10]), against: [{ other: theirs, measure: 'speed' as const }] }
    const [result] = await inTurns([ours, theirs], 3)
    expect(order).toEqual(['theirs', 'ours', 'ours', 'theirs', 'theirs', 'ours', 'ours', 'theirs'])
    expect(result.samples).toEqual([10, 20, 10])
    expect(result.ratios[0]).toMatchObject({ name: 'theirs', wall: { median: 3, low: 2.5, high: 3.5 } })
  })

  test('a case that runs once has no warm-up', async () => {
    const once = participant('once', [5], 1)
    const [result] = await inTurns([once, participant('often', [1, 2, 3])], 2)
    expect(result.samples).toEqual([5])
  })
})

describe('npm run bench', () => {
  const check = (path: string, names: string[]) => {
    const report = readReport(path)
    const found = new Set(report.results.map(({ name }) => name))
    expect([...found].sort()).toEqual(names.sort())
    for (const { samples, wallMs, name } of report.results) {
      expect(samples.length, name).toBeGreaterThan(0)
      expect(wallMs.median, name).toBeGreaterThan(0)
    }
    return report
  }
  const ours = [
    'st-moe/layer/forward',
    'st-moe/layer/forward+backward',
    'st-moe/growth/forward+backward',
    'st-moe/bf16/forward',
    'st-moe/bf16/forward+backward',
    'st-moe/model/step',
  ]

  test('measures everything without peers', () => {
    const json = join(folder, 'ours.json')
    const run = bench('--quick', '--no-peers', '--suite', 'layer,growth,bf16,model,memory', '--json', json)
    expect(run.status, run.stderr).toBe(0)
    const report = check(json, ours)
    expect(report.quick).toBe(true)
    expect(report.memory.map(({ implementation }) => implementation)).toEqual(['st-moe'])
    expect(report.results.find(({ name }) => name === ours[0])!.kept).toBeGreaterThan(0.3)
  })

  test(
    'agrees with PyTorch, which runs beside it',
    (context) => {
      pythonFor(context, referencePython())
      const json = join(folder, 'both.json')
      const run = bench('--quick', '--threads', '1', '--suite', 'layer,bf16,model,memory', '--json', json)
      expect(run.status, run.stderr).toBe(0)
      const theirs = ['layer/forward', 'layer/forward+backward'].flatMap((name) => [
        `st-moe-pytorch/${name}`,
        `index-pytorch/${name}`,
      ])
      const report = check(json, [
        ...ours.filter((name) => !name.includes('growth')),
        ...theirs,
        'index-pytorch/bf16/forward',
        'index-pytorch/bf16/forward+backward',
        'st-moe-pytorch/model/step',
      ])
      const errors = report.results.flatMap(({ name, error }) => (error === undefined ? [] : [[name, error] as const]))
      expect(errors.length).toBeGreaterThan(4)
      for (const [name, error] of errors) expect(error, name).toBeLessThan(1e-4)
    },
    45 * 60_000,
  )

  test('a wrong option is named', () => {
    expect(bench('--suite', 'speed').stderr).toContain(
      "--suite must be native, layer, growth, bf16, model, memory, got 'speed'",
    )
    expect(bench('--threads', '0').stderr).toContain("--threads must be whole numbers of at least 1, got '0'")
    expect(bench('--suite', 'layer', '--threads', '0').status).toBe(1)
  })
})
