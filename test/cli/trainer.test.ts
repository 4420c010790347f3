import { afterEach, describe, expect, test, vi } from 'vitest'
import { conflictOf } from '../../cli/trainer/conflict.js'
import { entryOf } from '../../cli/trainer/entry.js'
import { promptFor } from '../../cli/trainer/load.js'
import { modelSizes, type RunOptions, runFlags } from '../../cli/trainer/options.js'
import { textProgress } from '../../cli/trainer/progress.js'
import { Batches, CharacterTokenizer, heldOutLoss, LanguageModel } from '../../language-model/index.js'
import { weightBytes, weightCount, weightShapes } from '../../language-model/sizes.js'
import { makeOptimizer, makeSchedule, TrainStep } from '../../language-model/train-step.js'
import {
  keep,
  MoEMonitor,
  manualSeed,
  noGrad,
  Parameter,
  SGD,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { routerOptions, secondPolicies } from '../../lib/ops/route-options.js'
import { values } from '../support/numbers.js'

// What a step of `st-moe train` does.

const tokenizer = new CharacterTokenizer([...'abcde'])

test('the learning rate climbs from its first share, not from 0, and falls to 2 % of the highest', () => {
  const learningRate = (step: number, steps: number, lr: number): number => {
    const optimizer = new SGD([new Parameter(zeros([1]))], { lr })
    makeSchedule(optimizer, steps).moveTo(step)
    return optimizer.lr
  }
  const rates = Array.from({ length: 100 }, (_, step) => learningRate(step, 100, 1))
  expect(rates.slice(0, 5)).toEqual([0.2, 0.4, 0.6, 0.8, 1])
  for (let step = 6; step < 100; step++) expect(rates[step]).toBeLessThan(rates[step - 1])
  expect(rates[99]).toBeCloseTo(0.02, 2)
  expect(learningRate(100, 100, 3)).toBeCloseTo(0.06, 12)
  expect(learningRate(99, 1e6, 1)).toBe(1) // at most 100 steps of warm-up
  expect(learningRate(0, 1, 1)).toBe(1)
})

describe('a training step', () => {
  const options = { tokenizer, context: 8, dim: 16, layers: 1, heads: 2, experts: 4, topN: 2 }
  const batch = {
    input: Int32Array.from({ length: 16 }, (_, i) => i % 5),
    target: Int32Array.from({ length: 16 }, (_, i) => (i + 1) % 5),
  }

  /** What the optimizer sees of a model whose head is `scale` times as large: norm of the gradients, and rate. */
  function seen(scale: number) {
    manualSeed(3)
    using model = new LanguageModel(options)
    using optimizer = makeOptimizer(model, 0.01)
    scope(() => model.head.weight.copyFrom(model.head.weight.detach().mul(scale)))
    let squares: Tensor[] = []
    let rate = Number.NaN
    const step = optimizer.step.bind(optimizer)
    optimizer.step = () => {
      squares = optimizer.parameters.map(({ grad }) => keep(grad!.square().sum()))
      rate = optimizer.lr
      return step()
    }
    using monitor = new MoEMonitor(model)
    using trainStep = new TrainStep(model, optimizer)
    const loss = trainStep.run(batch)
    expect(optimizer.parameters.every(({ grad }) => grad === null)).toBe(true)
    expect(entryOf(loss, monitor.report())).toMatchObject({ loss, load: [{ length: options.experts }] })
    const norm = Math.sqrt(squares.reduce((sum, each) => sum + each.item(), 0))
    for (const each of squares) each.dispose()
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

/** The defaults of a run with a small model, and other options. */
const smallRun = (other: Partial<RunOptions>): RunOptions => {
  const defaults = Object.fromEntries(Object.entries(runFlags).map(([name, flag]) => [name, flag.default]))
  return { ...(defaults as RunOptions), layers: 2, dim: 16, heads: 2, experts: 4, context: 16, ...other }
}

describe('the layers', () => {
  const routers = routerOptions.router.allowed.map((router) => smallRun({ router }))
  const layers = [
    ...routers.filter((options) => conflictOf(modelSizes(options)) === null),
    ...secondPolicies.map((policy) => smallRun({ 'second-policy': policy })),
    smallRun({ dropless: true, 'score-function': 'sigmoid', activation: 'relu2', 'shared-experts': 2 }),
    smallRun({ activation: 'gelu', 'expert-hidden-dim': 100 }),
    smallRun({ 'expert-hidden-dim': 1, 'shared-experts': 1 }),
    smallRun({ router: 'switch', dropless: true }),
  ]

  test('of a language model do not see later characters in evaluation, nor random numbers', () => {
    expect(
      routers.map((options) => conflictOf(modelSizes(options))).filter((conflict) => conflict !== null),
    ).toHaveLength(1)
    for (const run of layers) {
      const options = { ...modelSizes(run), tokenizer }
      manualSeed(1)
      using model = new LanguageModel(options).eval()
      const logits = (...characters: number[]) =>
        noGrad(() =>
          scope(() => Array.from(values(model.forward(tensor(Int32Array.from(characters), [1, 16])).logits), Number)),
        )
      const first = Array.from({ length: 12 }, (_, i) => (i * 3) % 5)
      const [one, two] = [logits(...first, 0, 1, 2, 3), logits(...first, 4, 4, 4, 4)]
      expect(two.slice(0, 60), JSON.stringify(run)).toEqual(one.slice(0, 60))
      expect(two.slice(60)).not.toEqual(one.slice(60))
    }
  })

  test('have the dense sizes that memory is checked for', () => {
    for (const run of layers) {
      using model = new LanguageModel({ ...modelSizes(run), tokenizer })
      const bytes = 4 * [...model.parameters()].reduce((sum, { size }) => sum + size, 0)
      expect(weightBytes(model.sizes, 5)).toBeLessThan(bytes)
      expect(weightBytes(model.sizes, 5)).toBeGreaterThan(0.85 * bytes)
      const shapes = scope(() => Object.entries(model.stateDict()).map(([name, { shape }]) => [name, shape]))
      expect(weightCount(model.sizes)).toBe(shapes.length)
      expect(Object.fromEntries(shapes)).toMatchObject(weightShapes(model.sizes, 5))
    }
  })
})

describe('progress', () => {
  afterEach(() => {
    vi.useRealTimers()
  })

  /** What 40 steps of 8 s write to an output. */
  function shown(isTTY: boolean, columns: number): string {
    vi.useFakeTimers({ toFake: ['performance'] })
    let text = ''
    const write = (more: unknown) => {
      text += more
      return true
    }
    const report = textProgress({ isTTY, columns, write } as NodeJS.WriteStream)
    for (let step = 1; step <= 40; step++) {
      vi.advanceTimersByTime(8000)
      report({ event: 'step', step, steps: 40, loss: 1, dropped: 0, learningRate: 1e-3, load: [] })
    }
    return text
  }

  test('says how long the steps that are left take at the pace of those done', () => {
    const text = shown(false, 80)
    const left = new Map([...text.matchAll(/ (\d+)\/40 .* (\d+:\d\d) left$/gm)].map(([, step, time]) => [+step, time]))
    expect([2, 25, 39, 40].map((step) => left.get(step))).toEqual(['5:04', '2:00', '0:08', '0:00'])
  })

  test('shows the mean loss of the last 20 steps, always the last step, and no time of evaluations', () => {
    vi.useFakeTimers({ toFake: ['performance'] })
    const lines: string[] = []
    const write = (line: unknown) => lines.push(String(line)) > 0
    const report = textProgress({ isTTY: false, columns: 80, write } as NodeJS.WriteStream)
    for (let step = 1; step <= 40; step++) {
      vi.advanceTimersByTime(step < 40 ? 8000 : 100)
      report({ event: 'step', step, steps: 40, loss: step > 20 ? 1 : 9, dropped: 0, learningRate: 1e-3, load: [] })
      if (step % 10 !== 0 || step === 40) continue
      vi.advanceTimersByTime(600_000)
      report({ event: 'evaluation', step, loss: 2, sample: '' })
    }
    expect(lines.at(-1)).toContain(' 40/40  loss 1.000')
    expect(lines.find((line) => line.includes(' 32/40'))).toContain('  1:04 left')
  })

  test.each([
    [200, '██████████░░░░░░░░░░ 20/40  loss 1.000  0 char/s  0.0 % dropped  2:40 left'],
    [0, '██████████░░░░░░░░░░ 20/40  loss 1.000  0 char/s  0.0 % dropped  2:40 left'], // a width that is not known
    [66, '█████░░░░░░ 20/40  loss 1.000  0 char/s  0.0 % dropped  2:40 left'],
    [50, '█████░░░░░ 20/40  loss 1.000  0 char/s  2:40 left'],
    [40, '20/40  loss 1.000  0 char/s  2:40 left'],
    [30, '20/40  loss 1.000  2:40 left'],
    [20, '20/40  loss 1.000'],
    [9, '20/40'],
    [4, '20/'],
  ])('is one line of a terminal of %d columns', (columns, line) => {
    const lines = shown(true, columns).split('\r\x1b[2K')
    expect(lines).toContain(line)
    expect(Math.max(...lines.map(({ length }) => length))).toBeLessThan(columns || 80)
    expect(lines.join('')).not.toContain('\n')
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
    'vocab-size': null,
    router: 'topk',
    'second-policy': 'random',
    'score-function': 'softmax',
    dropless: false,
    activation: 'geglu',
    'expert-hidden-dim': null,
    'shared-experts': 0,
    context: 128,
    batch: 16,
    lr: 0.004,
    'evaluate-every': 200,
  })
})

describe('a text that is too short', () => {
  const text = (length: number) => Int32Array.from({ length }, (_, i) => i % 5)

  test('is refused by the batches: an epoch shifts its sequences', () => {
    const options = { seed: 1, context: 8, batch: 2 }
    expect(new Batches(text(16), options).at(0).target).toHaveLength(16)
    expect(() => new Batches(text(15), options)).toThrow(
      '[Batches] text must be a Uint8Array, Uint16Array or Int32Array of at least 16 tokens',
    )
    expect(() => new Batches([1, 2] as never, options)).toThrow(/got \[1, 2\]/)
    expect(() => new Batches(text(16), { ...options, batch: 0 })).toThrow('batch must be an integer of at least 1')
  })

  test('is refused by the evaluation: the last token is a target', async () => {
    using model = new LanguageModel({ tokenizer, context: 8, dim: 8, layers: 1, experts: 2, heads: 2 })
    expect(await heldOutLoss(model.eval(), text(9))).toBeGreaterThan(0)
    await expect(heldOutLoss(model, text(8))).rejects.toThrow(
      '[heldOutLoss] text must have more tokens than the context of 8, got 8',
    )
  })
})

test('a model whose vocabulary has no new line begins with its first character', () => {
  const prompt = (characters: string) => promptFor({ tokenizer: CharacterTokenizer.of(characters) } as never, null)
  expect([prompt('cab'), prompt('c\nb')]).toEqual(['a', '\n'])
})
