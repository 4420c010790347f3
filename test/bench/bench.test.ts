import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test, vi } from 'vitest'
import { serverChart } from '../../bench/bar-charts.js'
import { compare, describe as text } from '../../bench/compare.js'
import { ExecutedCounter } from '../../bench/executed.js'
import { geometricMean } from '../../bench/geometric-mean.js'
import { gpuTable } from '../../bench/gpu.js'
import { type Case, evaluated, inTurns } from '../../bench/measured.js'
import { fill, pages } from '../../bench/page.js'
import { growthChart } from '../../bench/picture.js'
import { type Report, type Result, readReport } from '../../bench/report.js'
import { sectionsOf } from '../../bench/sections.js'
import { isMet, missedList, targets } from '../../bench/targets.js'
import { spreadOf } from '../../cli/bench/statistics.js'
import { root } from '../support/blocks.js'
import { mpiFor } from '../support/mpi.js'
import { long } from '../support/numbers.js'
import { pythonFor, pythonPatience, referencePython } from '../support/python.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-bench-test-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function bench(...args: string[]) {
  return spawnSync(process.execPath, ['--import', 'tsx', 'bench/run.ts', ...args], { cwd: root, encoding: 'utf8' })
}

/** The arguments, and a report, of the suite of several processes. */
const inProcesses = (name: string) => {
  const json = join(folder, name)
  return { json, args: ['--quick', '--no-peers', '--repetitions', '2', '--suite', 'processes', '--json', json] }
}

const around = (median: number, by = 0.02) => ({ median, low: median * (1 - by), high: median * (1 + by) })

describe('executed instructions', () => {
  const counted = (kinds: ConstructorParameters<typeof ExecutedCounter>[0], lines: string[]) => {
    const counter = new ExecutedCounter(kinds)
    for (const line of lines) counter.add(line)
    return counter.total
  }
  const block = (address: string) => `Trace 0: 0x7f962c000100 [81009331/${address}/00000001/00000200] st_moe`

  test('each block counts as often as it runs, as it was translated last', () => {
    const arm64 = { fma: /^fmla/, memory: /^(ld|st)/ }
    const lines = [
      'IN: tile',
      '0x0040a340:  4f811000  fmla     v0.4s, v0.4s, v1.s[0]',
      '0x0040a344:  3dc00000  ldr      q0, [x0]',
    ]
    const run = block('000000000040a340')
    expect(counted(arm64, [...lines, run, run, run])).toEqual({ all: 6, fma: 3, memory: 3 })
    expect(counted(arm64, [...lines, run, ...lines.slice(0, 2), run])).toEqual({ all: 3, fma: 2, memory: 1 })
    expect(() => counted(arm64, [...lines, block('000000000040a344')])).toThrow('a block that it has not listed')
  })

  test('instructions of several lengths', () => {
    const lines = [
      'IN: ',
      '0x0115e3f1:  c4 81 7c 10 14 a6        vmovups  (%r14, %r12, 4), %ymm2',
      '0x0115e3f7:  c4 62 6d b8 d0           vfmadd231ps %ymm0, %ymm2, %ymm10',
      '0x0115e440:  7e 8e                    jle      0x115e3d0',
      block('000000000115e3f1'),
    ]
    expect(counted({ fma: /^vfn?m/, memory: /\(/ }, lines)).toEqual({ all: 3, fma: 1, memory: 1 })
  })
})

describe('statistics', () => {
  test('median and quartiles, between neighbours', () => {
    expect(spreadOf([4, 1, 3, 2])).toEqual({ median: 2.5, low: 1.75, high: 3.25 })
    expect(spreadOf([7])).toEqual({ median: 7, low: 7, high: 7 })
    expect(() => spreadOf([])).toThrow('samples must not be empty')
  })

  test('geometric mean', () => {
    const { median, low, high } = geometricMean([1, 4, 16].map((value) => around(value)))
    expect([median, low, high].map((value) => value / 4)).toEqual([1, 0.98, 1.02].map((value) => expect.closeTo(value)))
  })

  const limit: Case = { name: 'copy', params: {}, iterations: 1, bytes: 8e6, wall: [4, 2], against: [] }
  const op: Case = { name: 'op/add', params: {}, iterations: 3, bytes: 2e6, wall: [2, 4], against: [] }

  test('of a group: ratios of times and of work per second, inside a turn', () => {
    const ratios = (['time', 'speed', 'bytes'] as const).map((measure) => {
      const [, result] = evaluated([limit, { ...op, against: [{ index: 0, measure }] }])
      expect(result).toMatchObject({ wallMs: { median: 3 }, samples: [2, 4] })
      return result.ratios[0]
    })
    expect(ratios.map(({ name, turns }) => [name, turns])).toEqual(ratios.map(() => ['copy', 2]))
    expect(ratios.map(({ wall }) => wall.median)).toEqual([(0.5 + 2) / 2, (2 + 0.5) / 2, (0.5 + 0.125) / 2])
  })

  test('of a GPU: by its own clock', () => {
    const against = [{ index: 0, measure: 'time' as const }]
    const cases = [
      { ...limit, device: [1, 1] },
      { ...op, device: [5, 5], kernels: 2, gemms: 1, against },
    ]
    const table = gpuTable([{ cases }, { name: 'layer', params: { E: 64 }, leftOut: 'needs 98 GB' }])
    expect(table).toMatch(/op\/add .* 0\.400 GB\/s .* copy: \*\*5\.00\*\*, 2 repetitions .* 2 \+ 1 /)
    expect(table).toContain('layer {"E":64} is left out: needs 98 GB')
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
        return left.shift()!
      },
    }
  }

  test('alternate, leave the warm-up out, and take ratios inside a turn', async () => {
    const theirs = participant('theirs', [99, 20, 60, 40])
    const ours = { ...participant('ours', [99, 10, 20, 10]), against: [{ other: theirs, measure: 'speed' as const }] }
    const [result] = await inTurns([ours, theirs], 3)
    expect(order).toEqual(['theirs', 'ours', 'ours', 'theirs', 'theirs', 'ours', 'ours', 'theirs'])
    expect(result.samples).toEqual([10, 20, 10])
    expect(result.ratios[0]).toMatchObject({ name: 'theirs', turns: 3, wall: { median: 3, low: 2.5, high: 3.5 } })
  })

  test('a case that runs once has no warm-up', async () => {
    const once = participant('once', [5], 1)
    const often = { ...participant('often', [9, 1, 3]), against: [{ other: once, measure: 'speed' as const }] }
    const [result, other] = await inTurns([once, often], 2)
    expect(result.samples).toEqual([5])
    expect(other.samples).toEqual([1, 3])
    expect(other.ratios[0]).toMatchObject({ turns: 1, wall: { median: 5 } })
  })
})

function result(name: string, params: Result['params'], ms: number, ratios: [Result, number][] = []): Result {
  const both = { wallMs: around(ms), samples: [ms], iterations: 1 }
  const beside = ratios.map(([{ name, params }, ratio]) => ({
    name,
    params,
    measure: name === 'fma' ? ('flops' as const) : ('speed' as const),
    turns: 3,
    wall: around(ratio),
  }))
  return { name, params, ...both, ratios: beside }
}

const reportOf = (results: Result[]): Report => ({
  date: '2026-01-02T03:04:05Z',
  command: 'npm run bench',
  quick: false,
  machine: { cpu: 'a processor', cores: 2, memoryGiB: 8, system: 'Linux' },
  load: 0,
  versions: {},
  results,
  memory: [],
})

/** A run where a step of ours takes 100 ms at N = 1024 and grows with N, theirs with its square. */
function growthReport(theirs: number): Report {
  return reportOf(
    [1024, 4096, 8192].flatMap((N) => {
      const params = { N, threads: 2, compute: 'f32' }
      const factor = N / 1024
      const slow = result('st-moe-pytorch/growth/forward+backward', params, theirs * factor ** 2)
      return [result('st-moe/growth/forward+backward', params, 100 * factor, [[slow, (theirs * factor) / 100]]), slow]
    }),
  )
}

describe('targets', () => {
  const met = (report: Report, part: string) =>
    targets.filter(({ question }) => question.includes(part)).map((target) => isMet(target, report))

  test('are met, missed, or not measured', () => {
    expect(met(growthReport(230), 'as fast as st-moe-pytorch')).toEqual([true, true, true])
    expect(met(growthReport(180), 'as fast as st-moe-pytorch')).toEqual([false, true, true])
    expect(met(growthReport(130), 'as fast as st-moe-pytorch')).toEqual([false, false, true])
    expect(met(reportOf([]), '')).toEqual(targets.map(() => null))
  })

  test('GEMMs: the geometric mean, each number of threads by itself', () => {
    const share = { a: 0.8, y: 0.9, dh: 1, dx: 0.9, dw1: 0.9, dw2: 0.9 }
    const gemms = (threads: number, factor: number) => {
      const fma = result('fma', { threads }, 1)
      return Object.entries(share).map(([name, value]) =>
        result(`gemm/${name}`, { rows: 320, threads, compute: 'f32', weights: 'plain' }, 1, [[fma, value * factor]]),
      )
    }
    const [target] = targets
    expect(target.figures(reportOf(gemms(1, 1)))[0].value.median).toBeCloseTo((0.8 * 0.9 ** 4) ** (1 / 6), 12)
    expect(isMet(target, reportOf([...gemms(1, 1), ...gemms(2, 1)]))).toBe(true)
    const missing = reportOf([...gemms(1, 1), ...gemms(2, 0.9)])
    expect(isMet(target, missing)).toBe(false)
    expect(missedList(reportOf(gemms(1, 1)))).toBe('No target that was measured is missed.')
    expect(missedList(missing)).toContain('1 thread: a 0.800, y 0.900')
    expect(missedList(missing)).toContain('2 threads: a 0.720, y 0.810')
  })
})

describe('comparison of two reports', () => {
  const report = (ms: number) => reportOf([result('st-moe/layer/forward', { N: 1024, threads: 2 }, ms)])

  test('flags what changed by more than the spread', () => {
    const [change] = compare(report(100), report(110)).differences
    expect(change.change).toBeCloseTo(1.1, 12)
    expect(change.beyondSpread).toBe(true)
    expect(compare(report(100), report(103)).differences[0].beyondSpread).toBe(false)
    expect(text(compare(report(100), report(110)), false)).toContain('st-moe/layer/forward N=1024 threads=2')
    expect(text(compare(report(100), report(103)), false)).toContain('0 of 1 figures changed beyond the spread')
  })

  test('names what only one of them has', () => {
    expect(compare(report(100), reportOf([]))).toMatchObject({ differences: [], added: [] })
    expect(compare(report(100), reportOf([])).removed).toEqual(['st-moe/layer/forward N=1024 threads=2'])
  })
})

describe('page of figures', () => {
  test('fills what is between the marks and keeps the rest', () => {
    const page = '# A\n\n<!-- bench:growth -->\nold\n<!-- end -->\n\nkept\n'
    const filled = fill(page, { growth: 'new' })
    expect(filled).toBe('# A\n\n<!-- bench:growth -->\n\nnew\n\n<!-- end -->\n\nkept\n')
    expect(fill(filled, { growth: 'new' })).toBe(filled)
    expect(() => fill(page, {})).toThrow("there is no section 'growth'")
  })

  test('has a section for every mark of the pages', () => {
    const sections = sectionsOf(growthReport(230))
    for (const page of Object.keys(pages)) {
      const marks = readFileSync(join(root, page), 'utf8').match(/<!-- bench:\S+ -->/g)
      expect(marks!.length).toBeGreaterThan(0)
      for (const mark of marks!) expect(sections).toHaveProperty(mark.slice(11, -4))
    }
    expect(sections.growth).toMatch(/N 8192, .* 800 \(784–816\) .* st-moe-pytorch: 14,720 \(.*\) ms, \*\*18.4×\*\*/)
  })

  test('draws times over the length of a sequence on logarithmic axes', () => {
    const picture = growthChart(growthReport(200))
    const [ours, theirs] = [...picture.matchAll(/<path class="s\d" d="M([\d. L]+)"/g)].map(([, path]) =>
      path.split('L').map((place) => place.split(' ').map(Number)),
    )
    const slope = ([[x0, y0], , [x1, y1]]: number[][]) => (y0 - y1) / (x1 - x0)
    expect(slope(theirs) / slope(ours)).toBeCloseTo(2, 1)
    expect(() => growthChart(reportOf([]))).toThrow('no growth to draw')
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
    'st-moe/capture/call',
    'st-moe/capture/replay',
    'st-moe/soft/forward',
    'st-moe/soft/forward+backward',
    'st-moe/model/step',
    'st-moe/server/delay',
    'st-moe/server/step',
  ]
  const routers = ['forward', 'forward+backward'].flatMap((kind) =>
    ['st-moe', 'dropless', 'switch', 'switch-dropless', 'switchMax', 'ntlb', 'expertChoice'].map(
      (router) => `${router}/routers/${kind}`,
    ),
  )

  test('measures everything without peers', () => {
    const json = join(folder, 'ours.json')
    const run = bench(
      '--quick',
      '--no-peers',
      '--threads',
      '1',
      '--suite',
      'layer,growth,bf16,routers,soft,model,capture,server,memory',
      '--json',
      json,
    )
    expect(run.status, run.stderr).toBe(0)
    const report = check(json, [...ours, ...routers])
    expect(report.quick).toBe(true)
    expect(report.memory.map(({ implementation }) => implementation)).toEqual(['st-moe'])
    expect(report.results.find(({ name }) => name === ours[0])!.kept).toBeGreaterThan(0.3)
    expect(sectionsOf(report).layer).toContain('| st-moe/layer/forward+backward |')
    const chart = serverChart(report)
    for (const training of ['synchronous', 'asynchronous']) expect(chart).toContain(`>${training} steps</text>`)
    expect(sectionsOf(report).server).toContain(report.machine.cpu)
    expect(isMet(targets.find(({ question }) => question.includes('switch'))!, report)).not.toBe(null)
  })

  test.skipIf(!long)(
    // installs and imports it
    'agrees with PyTorch, which runs beside it',
    (context) => {
      pythonFor(context, referencePython())
      const json = join(folder, 'both.json')
      const run = bench('--quick', '--threads', '1', '--suite', 'layer,bf16,soft,model,memory', '--json', json)
      expect(run.status, run.stderr).toBe(0)
      const theirs = ['layer/forward', 'layer/forward+backward'].flatMap((name) => [
        `st-moe-pytorch/${name}`,
        `index-pytorch/${name}`,
      ])
      const report = check(json, [
        ...ours.filter((name) => !/growth|capture|server/.test(name)),
        ...theirs,
        'index-pytorch/bf16/forward',
        'index-pytorch/bf16/forward+backward',
        'soft-moe-pytorch/soft/forward',
        'soft-moe-pytorch/soft/forward+backward',
        'st-moe-pytorch/model/step',
      ])
      const errors = report.results.flatMap(({ name, error }) => (error === undefined ? [] : [[name, error] as const]))
      expect(errors.length).toBeGreaterThan(4)
      for (const [name, error] of errors) expect(error, name).toBeLessThan(name.includes('bf16') ? 5e-2 : 1e-4)
    },
    pythonPatience,
  )

  test.skipIf(!long)('two processes are measured beside one', (context) => {
    const { json, args } = inProcesses('processes.json')
    vi.stubEnv('ST_MOE_MPI_LIBRARY', mpiFor(context, 'mpich').library)
    const { status, stderr } = bench(...args)
    vi.unstubAllEnvs()
    expect(status, stderr).toBe(0)
    const asked = targets.filter(({ question }) => question.includes('two processes'))
    expect(asked.map((target) => isMet(target, readReport(json)) === null)).toEqual([false, false])
  })

  test('without a library two processes are left out', () => {
    const { json, args } = inProcesses('one-process.json')
    vi.stubEnv('ST_MOE_MPI_LIBRARY', join(folder, 'nothing.so'))
    const { status, stderr } = bench(...args)
    vi.unstubAllEnvs()
    expect([status, readReport(json).results]).toEqual([0, []])
    expect(stderr).toContain('The suite processes is left out')
  })

  test('a wrong option is named', () => {
    expect(bench('--suite', 'speed').stderr).toContain(
      "--suite must be native, ops, layer, growth, bf16, routers, soft, model, capture, server, generate, memory, processes, got 'speed'",
    )
    const { stderr, status } = bench('--suite', 'layer', '--threads', '0')
    expect(stderr).toContain("--threads must be whole numbers of at least 1, got '0'")
    expect(status).toBe(1)
  })
})
