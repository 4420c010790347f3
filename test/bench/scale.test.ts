import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { mobyDick, usualModel } from '../../bench/demo.js'
import { fill } from '../../bench/page.js'
import { anchorsOf, tutelSeconds } from '../../bench/scale/anchors.js'
import { fitMachine, leastSquares } from '../../bench/scale/fit.js'
import {
  best,
  type Layout,
  layoutsOf,
  memoryOf,
  mixedNumbers,
  ownNumbers,
  secondsOf,
  stepOf,
  sumOf,
  tokensOf,
} from '../../bench/scale/layout.js'
import {
  between,
  fitEfficiency,
  fittedUtilization,
  gpusOf,
  megatron,
  utilizationOf,
} from '../../bench/scale/machines.js'
import { type Measured, timeOf } from '../../bench/scale/measure.js'
import {
  allReduce,
  allReduceBytes,
  allToAll,
  byNode,
  computeSeconds,
  direct,
  groupOf,
  layerSeconds,
  layerWork,
  leaving,
  type Machine,
  nodesVisited,
  rowBytes,
} from '../../bench/scale/model.js'
import { active, deepSeek, demo, demoVocab, mixtral, models, tokenFlops, total } from '../../bench/scale/models.js'
import { exchangeBytes, fitted, predicted, slots } from '../../bench/scale/shapes.js'
import { layerErrors, picturesOf, rankCounts, sectionsOf, worldOf } from '../../bench/scale/tables.js'
import { LanguageModel, loadCorpus } from '../../language-model/index.js'

const measured = JSON.parse(
  readFileSync(new URL('../../bench/scale/measured.json', import.meta.url), 'utf8'),
) as Measured
const world = worldOf(measured)
const { here, gpus } = world
const page = readFileSync(new URL('../../docs/scaling.md', import.meta.url), 'utf8')

const box: Machine = {
  ...{ name: 'box', node: 4, rate: 1e12, peak: 2e12, memory: 1e11, capacity: 1e10, together: 1 },
  inside: { latency: 1e-6, gap: 1e-7, bandwidth: 1e10 },
  between: { latency: 1e-5, gap: 2e-6, bandwidth: 1e9 },
  ...{ sums: 'ring', rows: 'direct' },
}

describe('exchanges', () => {
  test('of routed rows (R − 1) / R leave a rank; a row has D, O and one more number', () => {
    expect(leaving(100 * rowBytes(512, 256, 4), 4)).toBe((100 * 4 * (512 + 1 + 256) * 3) / 4)
    expect(leaving(100 * rowBytes(512, 512, 4), 1)).toBe(0)
    expect(allReduceBytes(8e6, 4)).toBe(12e6)
  })

  test('an all-to-all inside a node and between nodes', () => {
    expect(direct(box, groupOf(box, 4), 4e6)).toBeCloseTo(1e-6 + 2 * 1e-7 + 3e6 / 1e10, 12)
    expect(direct(box, groupOf(box, 8), 8e6)).toBeCloseTo(1e-5 + 3 * 2e-6 + 4e6 / 1e9, 12)
    expect(allToAll(box, groupOf(box, 1), 8e6)).toBe(0)
  })

  test('by node: fewer messages, and a row crosses once', () => {
    const [near, far] = [1e-6 + 2 * 1e-7 + 6e6 / 1e10, 1e-5 + 4e6 / 1e9]
    expect(byNode(box, groupOf(box, 8), 8e6)).toBeCloseTo(near + far, 12)
    const half = 1e-5 + 2e6 / 1e9
    expect(byNode(box, groupOf(box, 8), 8e6, { once: 0.5, pipelined: true })).toBeCloseTo(half, 12)
    const small = 1024
    expect(allToAll({ ...box, rows: 'by node' }, groupOf(box, 256), small)).toBeLessThan(
      allToAll(box, groupOf(box, 256), small),
    )
    expect(nodesVisited(1, 8)).toBe(1)
    expect(nodesVisited(2, 2)).toBe(1.5)
    expect(nodesVisited(64, 8, 4)).toBe(4)
  })

  test('a sum by a ring takes 2 (R − 1) / R of the bytes; in rank order it also reads memory', () => {
    const group = groupOf(box, 4)
    const ring = 2 * (3 * 1e-6 + 3e6 / 1e10)
    expect(allReduce(box, group, 4e6)).toBeCloseTo(ring, 12)
    const ordered = direct(box, group, 4e6) + 4e6 / 1e11 + 3 * 1e-6 + 3e6 / 1e10
    expect(allReduce({ ...box, sums: 'rank order' }, group, 4e6)).toBeCloseTo(ordered, 12)
    expect(allReduce({ ...box, sums: 'rank order' }, groupOf(box, 1), 4e6)).toBe(0)
  })

  test('all ports of a node cross in the rings of NCCL, one in the other', () => {
    const group = groupOf(box, 8)
    expect(allReduce(box, group, 8e9)).toBeCloseTo((2 * 7e9) / 4e9, 3)
    expect(groupOf(box, 4, 4)).toEqual({ ranks: 4, perNode: 1 })
    expect(groupOf(box, 4, 2)).toEqual({ ranks: 4, perNode: 2 })
  })

  test('more bytes take longer, by every way', () => {
    for (const machine of [here, ...Object.values(gpus)])
      for (const ranks of [2, 16, 256])
        for (const exchange of [direct, byNode, allToAll, allReduce])
          expect(exchange(machine, groupOf(machine, ranks), 2e8)).toBeGreaterThan(
            exchange(machine, groupOf(machine, ranks), 1e8),
          )
  })
})

describe('a layer', () => {
  test('the slots of the README: 18 H D FLOP each, and the router', () => {
    const [, readme] = fitted
    expect(slots(readme)).toBe(5120)
    expect(layerWork(readme, 1).flops).toBe(18 * 512 * 1365 * 5120 + 6 * 512 * 16 * 4096)
    expect(layerWork(readme, 2).flops).toBe(layerWork(readme, 1).flops / 2)
    const row = 4 * (9.5 * 1365 + 13 * 512)
    expect(layerWork(readme, 1).bytes).toBe(row * 5120 + 16 * 3 * 512 * 1365 * 16)
    expect(computeSeconds(box, readme, 1)).toBeCloseTo(
      layerWork(readme, 1).flops / 1e12 + layerWork(readme, 1).bytes / 1e11,
      12,
    )
  })

  test('the fit finds a machine from what it would take', () => {
    const twin: Machine = { ...box, node: 2, sums: 'rank order', together: 1.2, between }
    twin.inside = { latency: 1e-6, gap: 1e-6, bandwidth: 1e10 }
    const times = new Map<string, number>()
    for (const shape of fitted)
      for (const ranks of [1, 2]) times.set(`${ranks} ${shape.name}`, layerSeconds(twin, shape, ranks))
    for (const bytes of exchangeBytes) times.set(`2 all-to-all ${bytes}`, allToAll(twin, groupOf(twin, 2), bytes))
    const found = fitMachine(twin, (ranks, name) => times.get(`${ranks} ${name}`)!)
    expect(found.rate / twin.rate).toBeCloseTo(1, 6)
    expect(found.memory / twin.memory).toBeCloseTo(1, 6)
    expect(found.together).toBeCloseTo(1.2, 6)
    expect(found.inside.bandwidth / 1e10).toBeCloseTo(1, 6)
    expect(layerSeconds(found, predicted, 2)).toBeCloseTo(layerSeconds(twin, predicted, 2), 9)
    expect(layerSeconds(found, predicted, 4)).toBeGreaterThan(computeSeconds(found, predicted, 4) * 2)
  })

  test('coefficients of a fit are not negative, and errors are relative', () => {
    expect(leastSquares([[1, 0, 2], [0, 1, 3]])).toEqual([2, 3]) // biome-ignore format: two points
    expect(leastSquares([[1, 1, 1], [1, 2, 0.5]])[1]).toBe(0) // biome-ignore format: two points
    expect(leastSquares([[1, 0, 1], [1, 0, 100], [0, 1, 1]])[0]).toBeLessThan(3) // biome-ignore format: three points
  })

  test('the samples of a case: medians', () => {
    const samples = [3, 1, 2].map((n) => ({ time: 10 * n, others: n / 10 }))
    expect(timeOf(samples)).toMatchObject({ median: 20, others: 0.2, count: 3 })
  })

  test('the measurement that is kept has every case, and the prediction is printed', () => {
    const errors = layerErrors(worldOf(measured))
    expect(errors.map(({ ranks, shape }) => [shape.name, ranks])).toEqual(
      [...fitted, predicted].flatMap(({ name }) => [1, 2, 4].map((ranks) => [name, ranks])),
    )
    expect(errors.filter(({ isFitted }) => isFitted).length).toBe(4)
  })
})

describe('models', () => {
  const rounded = (value: number) => Math.round(value / 1e9)

  test('parameters, and those that a token meets', () => {
    expect([total(mixtral), active(mixtral)].map(rounded)).toEqual([141, 39])
    expect([total(deepSeek), active(deepSeek)].map(rounded)).toEqual([671, 38])
  })

  test('the demo has the parameters of its model, except biases, norms and positions', async () => {
    const { tokenizer } = await loadCorpus(mobyDick, { name: 'Moby-Dick', context: usualModel.context! })
    const model = new LanguageModel({ ...usualModel, tokenizer })
    expect(tokenizer.size).toBe(demoVocab)
    expect(total(demo) / model.parameterCount).toBeGreaterThan(0.97)
    expect(total(demo) / model.parameterCount).toBeLessThan(1)
    model.dispose()
  })

  test('FLOP of a token: 6 per weight that it meets except embeddings, and attention', () => {
    const weights = active(mixtral) - 32768 * 6144
    expect(tokenFlops(mixtral)).toBeCloseTo(6 * weights + 6 * 56 * 4096 * 6144, -6)
    expect(tokenFlops(demo)).toBeLessThan(tokenFlops(demo, demo.topK))
  })
})

describe('layouts', () => {
  const plain: Layout = { ranks: 64, expertParallel: 8, shardOptimizer: false, recompute: false, pipeline: 1 }
  const numbers = ownNumbers(mixtral)

  test('memory of a rank', () => {
    const memory = memoryOf(mixtral, plain)
    const experts = 56 * 3 * 6144 * 16384 // an eighth: one of each layer
    const held = total(mixtral) - 7 * experts
    expect(memory.weights / (6 * held)).toBeCloseTo(1, 9)
    expect(memory.gradients / (4 * held)).toBeCloseTo(1, 9)
    expect(memory.state / (8 * held)).toBeCloseTo(1, 9)
    const shared = memoryOf(mixtral, { ...plain, shardOptimizer: true })
    expect(shared.state / (8 * ((held - experts) / 64 + experts / 8))).toBeCloseTo(1, 9)
    expect(shared.gradients).toBe(memory.gradients)
    const last = memoryOf({ ...mixtral, batch: 64 }, { ...plain, shardOptimizer: true })
    expect(last.gradients / last.state).toBeCloseTo(0.5, 9)
  })

  test('recomputation and stages take less memory', () => {
    const sum = (layout: Partial<Layout>) => sumOf(memoryOf(mixtral, { ...plain, ...layout }))
    expect(sum({ recompute: true })).toBeLessThan(sum({}))
    expect(sum({ shardOptimizer: true })).toBeLessThan(sum({}))
    expect(memoryOf(mixtral, { ...plain, pipeline: 8 }).weights).toBe(memoryOf(mixtral, plain).weights / 8)
  })

  test('recomputation takes a third more of the FLOP and two exchanges more', () => {
    const [kept, again] = [false, true].map((recompute) => stepOf(gpus.h100, mixtral, { ...plain, recompute }, numbers))
    expect(again.compute / kept.compute).toBeCloseTo(4 / 3, 9)
    expect(again.rows / kept.rows).toBeCloseTo(6 / 4, 9)
    expect(again.gradients).toBe(kept.gradients)
  })

  test('without overlap the parts of a step are added; with it the longer one counts', () => {
    const step = { compute: 5, rows: 2, gradients: 1, update: 0.5, stages: 0.25 }
    expect(secondsOf(step)).toBe(8.75)
    expect(secondsOf(step, true)).toBe(5.75)
    expect(secondsOf({ ...step, rows: 7 }, true)).toBe(8.75)
  })

  test('stages wait for each other, less with more sequences; one stage does not', () => {
    const stages = (batch: number, pipeline: number) =>
      stepOf(gpus.h100, { ...mixtral, batch }, { ...plain, pipeline, expertParallel: 1 }, mixedNumbers)
    expect(stages(64, 1).stages).toBe(0)
    const part = (batch: number) => stages(batch, 8).stages / stages(batch, 8).compute
    expect(part(1024)).toBeLessThan(part(64))
    expect(stages(1024, 16).compute / stages(1024, 1).compute).toBeCloseTo(16 * (4 / 56), 9)
  })

  test('the best layout fits and no other that fits is faster', () => {
    for (const model of models)
      for (const ranks of rankCounts)
        for (const stages of [false, true]) {
          const machine = model === demo ? here : gpus.h100
          const { choice, least } = best(machine, model, ranks, { stages })
          if (!choice) {
            expect(least).toBeGreaterThan(machine.capacity)
            continue
          }
          expect(choice.memory).toBeLessThanOrEqual(machine.capacity)
          expect(sumOf(memoryOf(model, choice.layout))).toBe(choice.memory)
          const rate = tokensOf(model, choice.layout) / choice.seconds
          for (const layout of layoutsOf(model, ranks, stages))
            if (sumOf(memoryOf(model, layout)) <= machine.capacity)
              expect(tokensOf(model, layout) / secondsOf(stepOf(machine, model, layout))).toBeLessThanOrEqual(rate)
        }
  })

  test('layouts: data-parallel ranks hold all experts, and the library has no stages', () => {
    const all = layoutsOf(mixtral, 64, false)
    expect(all.every(({ pipeline }) => pipeline === 1)).toBe(true)
    expect(new Set(all.map(({ expertParallel }) => expertParallel))).toEqual(new Set([1, 2, 4, 8]))
    for (const { ranks, pipeline, expertParallel } of layoutsOf(deepSeek, 64, true))
      expect((ranks / pipeline) % expertParallel).toBe(0)
  })

  test('more ranks are not slower, and need not more memory', () => {
    const rates = rankCounts.map((ranks) => {
      const { choice } = best(here, demo, ranks, { stages: false })
      return tokensOf(demo, choice!.layout) / choice!.seconds
    })
    expect(rates).toEqual([...rates].sort((a, b) => a - b))
    const least = rankCounts.map((ranks) => best(gpus.h100, deepSeek, ranks, { stages: true }).least)
    expect(least).toEqual([...least].sort((a, b) => b - a))
  })
})

describe('published figures', () => {
  const anchors = anchorsOf(gpus, here)

  test('the rate of GPUs is fitted to one figure', () => {
    expect(utilizationOf(gpus.h100, megatron)).toBeCloseTo(fittedUtilization, 6)
    expect(gpusOf(fitEfficiency()).a100.rate / gpus.a100.peak).toBe(world.efficiency)
    expect(world.efficiency).toBeLessThan(1)
  })

  test('what was fitted is met, and the page says of which that is', () => {
    for (const { published, model, isFitted, what } of anchors)
      if (isFitted) expect(Math.abs(model / published - 1), what).toBeLessThan(0.05)
    expect(anchors.filter(({ isFitted }) => isFitted).length).toBeLessThan(anchors.length / 3)
  })

  test('every figure is on the page, with its distance', () => {
    const lines = page.split('\n').map((line) => line.replaceAll(/ +/g, ' '))
    for (const { what, source, published, model } of anchors) {
      expect(published).toBeGreaterThan(0)
      expect(model).toBeGreaterThan(0)
      const line = lines.find((text) => text.startsWith(`| ${what} |`))
      expect(line, what).toContain(source)
      expect(line).toContain((model / published).toFixed(2))
    }
  })

  test('Tutel gains by exchanges that run while experts compute, and by no one-hot products', () => {
    const [tutel, fairseq] = tutelSeconds(gpus.a100, 16)
    const experts = (12 * 32768 * 2048 * 2048) / gpus.a100.rate
    const oneHot = (12 * 16384 * 32768 * 2048) / gpus.a100.rate
    expect(tutel).toBeGreaterThanOrEqual(experts)
    expect(fairseq).toBeGreaterThan(experts + oneHot)
  })
})

describe('docs/scaling.md', () => {
  test('is what `npm run scale` writes of the measurement that is kept', () => {
    expect(page === fill(page, sectionsOf(world))).toBe(true)
    for (const [name, picture] of Object.entries(picturesOf(world)))
      expect(readFileSync(new URL(`../../docs/images/${name}`, import.meta.url), 'utf8') === picture).toBe(true)
  })

  test('says what has not run', () => {
    expect(page).toContain('No GPU and no cluster has run this library in several processes.')
    expect(page).toContain(measured.processor)
    expect(page).toContain('Stages do not exist in this library')
  })
})
