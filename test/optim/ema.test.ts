import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import {
  captureStep,
  EMA,
  Linear,
  loadCheckpoint,
  loadSafetensorsSync,
  Module,
  memory,
  Parameter,
  randn,
  saveCheckpoint,
  saveSafetensorsSync,
  scope,
  tensor,
  trainStepAsync,
  zeros,
} from '../../lib/index.js'
import { any } from '../support/bad-input.js'
import { useEmulator } from '../support/emulator.js'
import { relativeError, values } from '../support/numbers.js'

const built = useEmulator()
const folder = mkdtempSync(join(tmpdir(), 'st-moe-ema-'))
afterAll(() => rmSync(folder, { recursive: true }))

class Net extends Module {
  single: Parameter
  double = new Parameter(tensor(Float64Array.of(1, -2), [2]))
  empty = new Parameter(zeros([0, 3]))
  tied: Parameter
  constructor(device?: 'cuda') {
    super()
    this.single = new Parameter(randn([70, 3], { device }))
    if (device) this.to(device)
    this.tied = this.single
  }
  forward() {}
}
const change = (model: Net, t: number) => {
  scope(() => {
    model.single.copyFrom(model.single.detach().mul(1.5).add(t))
    model.double.copyFrom(model.double.detach().mul(-0.5))
  })
}
const listsOf = (state: Record<string, { dataSync(): ArrayLike<number> }>) =>
  Object.fromEntries(Object.entries(state).map(([name, value]) => [name, Array.from(value.dataSync())]))
const averages = (ema: EMA) => scope(() => listsOf(ema.stateDict()))
const parameters = (model: Module) => listsOf(Object.fromEntries(model.namedParameters()))

test('averages follow the formula', () => {
  const model = new Net()
  using ema = new EMA(model, { decay: 0.9 })
  const expected = ['single', 'double'].map((name) => Float64Array.from(any(model)[name].dataSync() as Float64Array))
  for (let t = 1; t <= 6; t++) {
    if (t === 4) ema.decay = 0.5
    change(model, t)
    for (const [i, p] of [model.single, model.double].entries())
      for (const [j, value] of p.dataSync().entries())
        expected[i][j] = ema.decay * expected[i][j] + (1 - ema.decay) * value
    ema.update()
  }
  scope(() => {
    const state = ema.stateDict()
    expect(Object.keys(state)).toEqual(['single', 'double', 'empty'])
    expect(relativeError(values(state.single), expected[0])).toBeLessThan(1e-6)
    expect(relativeError(values(state.double), expected[1])).toBeLessThan(1e-15)
  })
})

test.each([
  [0, 1],
  [1, 0],
])('a decay of %d leaves %d of the parameters', (decay, share) => {
  const model = new Net()
  using ema = new EMA(model, { decay })
  const before = averages(ema)
  change(model, 2)
  ema.update()
  const { tied: _, ...now } = parameters(model)
  const [found, expected] = [averages(ema), share ? now : before]
  for (const name of Object.keys(found)) expect(relativeError(found[name], expected[name])).toBeLessThan(1e-6)
})

test.skipIf(!built)('replays of a captured step update as calls do, with the decay of each', () => {
  const run = (replays: boolean) => {
    const model = new Net('cuda')
    model.single.copyFrom(new Float32Array(210).fill(0.3))
    using ema = new EMA(model)
    const step = () => ema.update()
    using captured = replays ? captureStep(step, { device: 'cuda' }) : null
    for (let t = 1; t <= 3; t++) {
      change(model, t)
      ema.decay = 0.5 / t
      captured ? captured.replay() : step()
    }
    return averages(ema)
  }
  expect(run(true)).toEqual(run(false))
})

describe('use', () => {
  const model = new Net()
  const ema = new EMA(model, { decay: 0.5 })
  change(model, 1)
  ema.update()
  const [own, average] = [parameters(model), averages(ema)]
  const swapped = { ...average, tied: average.single }

  test('evaluates with the averages, and restores', async () => {
    const before = memory().tensors
    expect(ema.use(() => parameters(model))).toEqual(swapped)
    expect(parameters(model)).toEqual(own)
    expect(
      await ema.use(async () => {
        await null
        return parameters(model)
      }),
    ).toEqual(swapped)
    expect(parameters(model)).toEqual(own)
    expect(averages(ema)).toEqual(average)
    expect(memory().tensors).toBe(before)
  })

  test('restores after an exception', async () => {
    const thrown = () => {
      throw new Error('mine')
    }
    expect(() => ema.use(thrown)).toThrow('mine')
    await expect(ema.use(async () => thrown())).rejects.toThrow('mine')
    expect(parameters(model)).toEqual(own)
  })

  test('what would mix both up is an error', async () => {
    const file = join(folder, 'mixed.safetensors')
    await ema.use(async () => {
      for (const act of [() => ema.update(), () => ema.swapIn(), () => ema.use(() => 1)])
        expect(act).toThrow(/the model has the averages: call swapOut\(\) first/)
      await expect(saveCheckpoint(file, { model, ema, step: 1 })).rejects.toMatchObject({ code: 'UNSUPPORTED' })
    })
    expect(() => ema.swapOut()).toThrow(/\[EMA.swapOut\] the model has its own parameters/)
    expect(parameters(model)).toEqual(own)
  })

  test('two averages of one parameter are not swapped in at once', async () => {
    const layer = new Linear(2, 2)
    const [slow, fast] = [new EMA(layer), new EMA(layer)]
    const before = parameters(layer)
    const { tensors } = memory()
    await slow.use(async () => {
      await null
      for (const [act, op] of [
        [() => fast.update(), 'EMA.update'],
        [() => new EMA(layer), 'EMA'],
      ] as const)
        expect(act).toThrow(`[${op}] weight has the average of another EMA: call its swapOut() first`)
      expect(() => fast.use(() => {})).toThrow('[EMA.swapIn] weight has the average of another EMA: call its swapOut()')
    })
    expect(memory().tensors).toBe(tensors)
    expect(fast.use(() => 5)).toBe(5)
    fast.update()
    expect(parameters(layer)).toEqual(before)
  })

  test.each(['swapOut', 'dispose'] as const)(
    '%s within it restores, and hides neither result nor error',
    async (end) => {
      const layer = new Linear(2, 2)
      const use = <T>(fn: () => T): T => {
        const average = new EMA(layer)
        layer.weight.copyFrom(randn([2, 2]))
        const before = parameters(layer)
        return average.use(() => {
          average[end]()
          expect(parameters(layer)).toEqual(before)
          return fn()
        })
      }
      const thrown = () => {
        throw new Error('mine')
      }
      expect(use(() => 5)).toBe(5)
      expect(() => use(thrown)).toThrow('mine')
      expect(await use(async () => 5)).toBe(5)
      await expect(use(async () => thrown())).rejects.toThrow('mine')
    },
  )

  test('an asynchronous call cannot swap: it could not undo it', async () => {
    const before = parameters(model)
    for (const act of [() => ema.swapIn(), () => ema.use(() => {})])
      await expect(trainStepAsync(act)).rejects.toThrow(/\[EMA.swapIn\] an asynchronous call that fails could not give/)
    ema.swapIn()
    await expect(trainStepAsync(() => ema.swapOut())).rejects.toThrow(/\[EMA.swapOut\] an asynchronous call/)
    ema.swapOut()
    expect(parameters(model)).toEqual(before)
  })

  test('a graph recorded before is an error of its backward, not a wrong gradient', () => {
    const layer = new Linear(2, 2)
    using average = new EMA(layer)
    const y = layer.forward(randn([3, 2], { requiresGrad: true })).sum()
    average.use(() => {})
    expect(() => y.backward()).toThrow(/changed in place/)
  })

  test('dispose gives the model its own parameters back', () => {
    const [other, before] = [new Net(), memory().tensors]
    const average = new EMA(other)
    const start = parameters(other)
    change(other, 1)
    const changed = parameters(other)
    average.swapIn()
    expect(parameters(other)).toEqual(start)
    average.dispose()
    average.dispose()
    expect(parameters(other)).toEqual(changed)
    expect(memory().tensors).toBe(before)
    expect(() => average.update()).toThrow(expect.objectContaining({ code: 'DISPOSED' }))
  })
})

test.skipIf(!built)('a model that has moved is an error of its EMA, and stays as it is', () => {
  const model = new Net().to('cpu')
  using ema = new EMA(model)
  model.to('cuda')
  const before = parameters(model)
  expect(() => ema.use(() => {})).toThrow('[EMA.swapIn] single must be on cpu, got cuda:0')
  expect(() => ema.swapOut()).toThrow('the model has its own parameters')
  expect(parameters(model)).toEqual(before)
})

describe('a checkpoint', () => {
  const file = join(folder, 'run.safetensors')
  test('keeps averages and decay, bit for bit', async () => {
    const model = new Net()
    const ema = { slow: new EMA(model, { decay: 0.999 }), fast: new EMA(model, { decay: 0.5 }) }
    change(model, 1)
    for (const each of Object.values(ema)) each.update()
    await saveCheckpoint(file, { model, ema, step: 1 })
    const resumed = new Net()
    const other = { slow: new EMA(resumed), fast: new EMA(resumed) }
    await loadCheckpoint(file, { model: resumed, ema: other })
    expect([other.slow.decay, other.fast.decay]).toEqual([0.999, 0.5])
    expect([averages(other.slow), averages(other.fast)]).toEqual([averages(ema.slow), averages(ema.fast)])
    await expect(loadCheckpoint(file, { model, ema: other.slow })).rejects.toThrow(
      /holds no state of the ema, but of ema "slow", ema "fast"/,
    )
  })

  test('that does not fit changes nothing', async () => {
    const model = new Net()
    const ema = new EMA(model)
    await saveCheckpoint(file, { model, ema, step: 1 })
    const { tensors, metadata } = loadSafetensorsSync(file)
    const save = (extra: object, options: object = { decay: 0.25 }) => {
      const about = JSON.parse(metadata['st-moe.checkpoint'])
      about.emas[0].options = options
      saveSafetensorsSync(file, { ...tensors, ...extra }, { metadata: { 'st-moe.checkpoint': JSON.stringify(about) } })
    }
    change(model, 3)
    ema.update()
    const before = [averages(ema), ema.decay, parameters(model)]
    const bad: [() => void, RegExp][] = [
      [() => save({ 'ema.single': zeros([3]) }), /single must be \[70, 3\], got \[3\]/],
      [() => save({ 'ema.double': zeros([2]) }), /double must be f64, got f32/],
      [() => save({ 'ema.other': zeros([2]) }), /unexpected: other/],
      [() => save({}, { decay: 2 }), /decay must be a finite number from 0 to 1, got 2/],
      [() => save({}, { decays: 1 }), /unknown option "decays"/],
    ]
    for (const [write, text] of bad) {
      write()
      const error = { code: 'STATE_DICT', message: expect.stringMatching(text) }
      await expect(loadCheckpoint(file, { model, ema })).rejects.toMatchObject(error)
    }
    expect(() => ema.loadStateDict({})).toThrow(/missing: single[\s\S]*missing: empty/)
    expect([averages(ema), ema.decay, parameters(model)]).toEqual(before)
  })
})

test('bad arguments', () => {
  expect(() => new EMA(any({}))).toThrow('[EMA] model must be a Module, got an object')
  expect(() => new EMA(new Net(), { decay: 1.5 })).toThrow(/decay must be a finite number from 0 to 1, got 1.5/)
  const ema = new EMA(new Net())
  ema.decay = Number.NaN
  expect(() => ema.update()).toThrow(/\[EMA.update\] decay must be a finite number/)
  expect(() => ema.use(any(1))).toThrow(/fn must be a function, got 1/)
  expect(() => JSON.stringify(ema)).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))
  expect(() => structuredClone(ema)).toThrow(/an EMA belongs to its thread/)
})
