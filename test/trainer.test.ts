import { afterEach, describe, expect, test, vi } from 'vitest'
import { LanguageModel } from '../lib/cli/language-model/model.js'
import { runFlags } from '../lib/cli/language-model/options.js'
import { textProgress } from '../lib/cli/language-model/progress.js'
import { learningRate, makeOptimizer, trainStep } from '../lib/cli/language-model/train.js'
import { manualSeed, scope } from '../lib/index.js'
import { values } from './support/numbers.js'

// What a step of `st-moe train` does.

test('the learning rate climbs from its first share, not from 0, and falls to 2 % of the highest', () => {
  const rates = Array.from({ length: 100 }, (_, step) => learningRate(step, 100, 1))
  expect(rates.slice(0, 5)).toEqual([0.2, 0.4, 0.6, 0.8, 1])
  for (let step = 6; step < 100; step++) expect(rates[step]).toBeLessThan(rates[step - 1])
  expect(rates[99]).toBeCloseTo(0.02, 2)
  expect(learningRate(100, 100, 3)).toBeCloseTo(0.06, 12)
  expect(learningRate(99, 1e6, 1)).toBe(1) // at most 100 steps of warm-up
  expect(learningRate(0, 1, 1)).toBe(1)
})

describe('trainStep', () => {
  const options = { vocabulary: 5, context: 8, dim: 16, layers: 1, heads: 2, experts: 4, topN: 2 }
  const batch = {
    input: Int32Array.from({ length: 16 }, (_, i) => i % 5),
    target: Int32Array.from({ length: 16 }, (_, i) => (i + 1) % 5),
  }

  /** What the optimizer sees of a model whose head is `scale` times as large: norm of the gradients, and rate. */
  function seen(scale: number) {
    manualSeed(3)
    using model = new LanguageModel({ ...options, computeDtype: 'f32' })
    using optimizer = makeOptimizer(model)
    scope(() => model.head.weight.copyFrom(model.head.weight.detach().mul(scale)))
    let norm = Number.NaN
    let rate = Number.NaN
    const step = optimizer.step.bind(optimizer)
    optimizer.step = () => {
      norm = Math.hypot(...optimizer.parameters.flatMap(({ grad }) => Array.from(values(grad!))))
      rate = optimizer.lr
      step()
    }
    const { loss, stats } = trainStep(model, optimizer, batch, 0.01)
    expect(optimizer.parameters.every(({ grad }) => grad === null)).toBe(true)
    expect(stats).toHaveLength(options.layers)
    return { norm, rate, loss }
  }

  test('passes the optimizer its learning rate, and gradients whose norm is at most 1', () => {
    const [gentle, steep] = [seen(1e-3), seen(100)]
    expect([gentle.rate, steep.rate]).toEqual([0.01, 0.01])
    expect(gentle.norm).toBeLessThan(0.99)
    expect(gentle.loss).toBeCloseTo(Math.log(5), 1)
    expect(steep.norm).toBeCloseTo(1, 5)
  })
})

describe('progress', () => {
  afterEach(() => {
    vi.useRealTimers()
  })

  test('says how long the steps that are left take at the pace of those done', () => {
    vi.useFakeTimers({ toFake: ['performance'] })
    let text = ''
    const write = (more: unknown) => {
      text += more
      return true
    }
    const report = textProgress({ isTTY: false, columns: 80, write } as NodeJS.WriteStream)
    for (let step = 1; step <= 40; step++) {
      vi.advanceTimersByTime(8000)
      report({ event: 'step', step, steps: 40, loss: 1, dropped: 0 })
    }
    const left = new Map([...text.matchAll(/ (\d+)\/40 .* (\d+:\d\d) left$/gm)].map(([, step, time]) => [+step, time]))
    expect([2, 25, 39, 40].map((step) => left.get(step))).toEqual(['5:04', '2:00', '0:08', '0:00'])
  })
})

test('the defaults of a run', () => {
  const defaults = Object.fromEntries(Object.entries(runFlags).map(([name, flag]) => [name, flag.default]))
  expect(defaults).toEqual({
    steps: 2000,
    minutes: 0,
    seed: 1,
    device: 'cpu',
    threads: null,
    'compute-dtype': 'f32',
    layers: 3,
    dim: 128,
    heads: 4,
    experts: 8,
    'top-n': 2,
    context: 128,
    batch: 16,
    lr: 0.004,
    'evaluate-every': 200,
  })
})
