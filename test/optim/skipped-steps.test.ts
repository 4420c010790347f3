import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest'
import {
  Adafactor,
  AdamW,
  captureStep,
  clipGradNorm,
  type Device,
  EMA,
  full,
  Linear,
  Lion,
  loadCheckpoint,
  Module,
  manualSeed,
  memory,
  mseLoss,
  type Optimizer,
  ones,
  SGD,
  type StepOptions,
  saveCheckpoint,
  scope,
  type Tensor,
  tensor,
  trainStepAsync,
  zeros,
} from '../../lib/index.js'
import { native } from '../../lib/runtime/native.js'
import { handleOf } from '../../lib/tensor/tensor.js'
import { useEmulator } from '../support/emulator.js'
import { disposeOwned, own } from '../support/owned.js'

// Captured steps with `onNonFinite: 'skip'`: the device decides in each replay. The GPU is the emulator (npm run build:simt).

const devices: Device[] = useEmulator() ? ['cpu', 'cuda'] : ['cpu']
const folder = mkdtempSync(join(tmpdir(), 'st-moe-skipped-'))
afterAll(() => rmSync(folder, { recursive: true }))
afterEach(disposeOwned)

const skip: StepOptions = { onNonFinite: 'skip' }
const bits = (x: Tensor): string => Buffer.from(x.dataSync().buffer).toString('hex')
const bitsOf = (state: Record<string, Tensor>) => Object.entries(state).map(([name, value]) => [name, bits(value)])

/** Two layers that share nothing but the loss: each can have a NaN of its own. */
class Pair extends Module {
  first: Linear
  second: Linear

  constructor(device: Device) {
    super()
    this.first = new Linear(8, 8, { device, computeDtype: 'bf16' })
    this.second = new Linear(3, 5, { device })
  }

  forward(x: Tensor, y: Tensor): Tensor {
    const second = this.second.forward(y)
    return mseLoss(this.first.forward(x), x).add(second.square().mean())
  }
}

const makers: Record<string, (model: Pair) => Optimizer> = {
  AdamW: ({ first, second }) =>
    new AdamW([{ params: first.parameters(), lr: 1e-2 }, { params: second.parameters() }], { lr: 3e-2 }),
  SGD: (model) => new SGD(model.parameters(), { lr: 0.1 }),
  'SGD with momentum': (model) => new SGD(model.parameters(), { lr: 0.1, momentum: 0.9 }),
  Lion: (model) => new Lion(model.parameters(), { lr: 1e-2 }),
  Adafactor: (model) => new Adafactor(model.parameters(), { beta1: 0.9 }),
}

/** A batch: finite numbers, or a NaN or an infinity in the input of one layer. */
type Batch = [number: number, bad?: { first?: number; second?: number }]

function training(device: Device, make: (model: Pair) => Optimizer, options?: StepOptions) {
  manualSeed(7)
  const model = own(new Pair(device))
  const optimizer = own(make(model))
  const ema = own(new EMA(model, { decay: 0.5 }))
  const x = own(zeros([4, 8], { device }))
  const y = own(zeros([2, 3], { device }))
  const step = (given = options) => {
    optimizer.zeroGrad()
    const loss = model.forward(x, y)
    loss.backward()
    clipGradNorm(model.parameters(), 0.5, { wait: false })
    optimizer.step(given)
    ema.update()
    return loss
  }
  const fill = ([i, bad]: Batch) => {
    const numbers = (length: number) => Float32Array.from({ length }, (_, j) => Math.sin(i * 97 + j))
    const put = (to: Tensor, value: number | undefined) => {
      const values = numbers(to.size)
      if (value !== undefined) values[to.size - 1] = value
      to.copyFrom(values)
    }
    put(x, bad?.first)
    put(y, bad?.second)
  }
  const left = () => scope(() => ({ model: bitsOf(model.stateDict()), optimizer: bitsOf(optimizer.stateDict()) }))
  const averages = () => scope(() => bitsOf(ema.stateDict()))
  return { model, optimizer, ema, step, fill, left, averages, device }
}
type Training = ReturnType<typeof training>

/** Replays of one captured step: their losses. */
function replayed(t: Training, batches: readonly Batch[]): number[] {
  const step = own(captureStep(() => t.step(), { device: t.device }))
  return batches.map((batch) => {
    t.fill(batch)
    return step.replay().item()
  })
}

const finite: Batch[] = [[0], [1], [2], [3], [4], [5]]
const withBad: Batch[] = [
  [6, { first: Number.NaN }], // the first step of all
  [0],
  [1],
  [7, { second: Number.NaN }],
  [8, { first: Infinity, second: Number.NaN }],
  [2],
  [3],
  [4],
  [9, { second: -Infinity }],
  [5],
  [10, { first: Number.NaN }],
]

describe.each(devices)('on %s', (device) => {
  describe.each(Object.entries(makers))('%s', (_, make) => {
    test('finite steps have the bits of those without the option', () => {
      const [plain, careful] = [training(device, make), training(device, make, skip)]
      const losses = replayed(plain, finite)
      expect(replayed(careful, finite)).toEqual(losses)
      expect([careful.left(), careful.averages()]).toEqual([plain.left(), plain.averages()])
      expect(careful.optimizer.skipped).toBe(0)
    })

    test('steps that are not finite leave weights, moments and step counts as if they had not been', () => {
      const [plain, careful] = [training(device, make), training(device, make, skip)]
      const losses = replayed(plain, finite)
      expect(replayed(careful, withBad).filter(Number.isFinite)).toEqual(losses)
      expect(careful.left()).toEqual(plain.left())
      expect(careful.optimizer.skipped).toBe(5)
    })

    test('replays leave what calls leave that wait for each gradient', () => {
      const [called, careful] = [training(device, make, skip), training(device, make, skip)]
      replayed(careful, withBad)
      for (const batch of withBad) {
        called.fill(batch)
        scope(() => called.step())
      }
      // A call makes a state at the first step that is taken, a capture at once.
      expect([careful.left(), careful.averages()]).toEqual([called.left(), called.averages()])
      expect([careful.optimizer.skipped, called.optimizer.skipped]).toEqual([5, 5])
    })
  })

  const { AdamW: adamw } = makers

  test('an EMA in the step moves towards the parameters, whether they have changed or not', () => {
    const [plain, careful] = [training(device, adamw), training(device, adamw, skip)]
    replayed(plain, finite.slice(0, 2))
    plain.ema.update()
    replayed(careful, [...finite.slice(0, 2), [7, { second: Number.NaN }]])
    expect(careful.averages()).toEqual(plain.averages())
  })

  test('a checkpoint after skipped steps resumes with the same bits', async () => {
    const file = join(folder, `${device}.safetensors`)
    const [whole, first, second] = [1, 2, 3].map(() => training(device, adamw, skip))
    const losses = replayed(whole, withBad)
    replayed(first, withBad.slice(0, 5))
    const { model, optimizer, ema } = first
    await saveCheckpoint(file, { model, optimizer, ema, step: 5 })
    await loadCheckpoint(file, { model: second.model, optimizer: second.optimizer, ema: second.ema })
    expect(replayed(second, withBad.slice(5))).toEqual(losses.slice(5))
    expect([second.left(), second.averages()]).toEqual([whole.left(), whole.averages()])
    expect([whole.optimizer.skipped, second.optimizer.skipped]).toEqual([5, 2])
  })

  test('reading the count never waits; the latest replay counts as soon as something has waited for it', () => {
    const t = training(device, adamw, skip)
    const step = own(captureStep(() => t.step(), { device }))
    t.fill([0, { first: Number.NaN }])
    step.replay()
    const reads = vi.spyOn(native, 'toData')
    expect(t.optimizer.skipped).toBe(device === 'cpu' ? 1 : 0)
    expect(reads).not.toHaveBeenCalled()
    reads.mockRestore()
    scope(() => t.optimizer.stateDict())
    expect(t.optimizer.skipped).toBe(1)
    step.replay()
    step.replay()
    expect(t.optimizer.skipped).toBe(device === 'cpu' ? 3 : 2)
    step.dispose()
    expect(t.optimizer.skipped).toBe(3)
  })

  test('steps that are called, and those of another captured step, go on from the right count', () => {
    const [plain, careful] = [training(device, adamw), training(device, adamw, skip)]
    replayed(plain, finite.slice(0, 4))
    const [a, b] = [1, 2].map(() => own(captureStep(() => careful.step(), { device })))
    const replay = (step: typeof a, batch: Batch) => {
      careful.fill(batch)
      step.replay()
    }
    replay(a, [0])
    replay(a, [7, { first: Number.NaN }])
    replay(b, [1])
    replay(b, [7, { first: Number.NaN }])
    careful.fill([2])
    scope(() => careful.step({}))
    replay(a, [3])
    expect(careful.left()).toEqual(plain.left())
    expect(careful.optimizer.skipped).toBe(2)
  })

  test('each optimizer decides about its own parameters', () => {
    const model = own(new Pair(device))
    const [first, second] = [model.first, model.second].map((layer) => own(new SGD(layer.parameters(), { lr: 1 })))
    const x = own(ones([1, 8], { device }))
    const y = own(zeros([1, 3], { device }))
    const step = own(
      captureStep(
        () => {
          model.zeroGrad()
          model.forward(x, y).backward()
          for (const optimizer of [first, second]) optimizer.step(skip)
        },
        { device },
      ),
    )
    y.copyFrom(new Float32Array(3).fill(Number.NaN))
    const before = [model.first, model.second].map(({ weight }) => bits(weight))
    step.replay()
    const changed = [model.first, model.second].map(({ weight }, i) => bits(weight) !== before[i])
    expect(changed).toEqual([true, false])
    scope(() => [first, second].map((optimizer) => optimizer.stateDict()))
    expect([first.skipped, second.skipped]).toEqual([0, 1])
  })

  test('optimizers with one norm decide alike, and as in calls', () => {
    const run = (captured: boolean) => {
      const model = own(new Pair(device))
      const optimizers = [model.first, model.second].map((layer) => own(new AdamW(layer.parameters(), { lr: 0.1 })))
      const [x, y] = [own(ones([1, 8], { device })), own(zeros([1, 3], { device }))]
      const call = () => {
        model.zeroGrad()
        model.forward(x, y).backward()
        const norm = clipGradNorm(model.parameters(), 1, { wait: false })
        for (const optimizer of optimizers) optimizer.step({ onNonFinite: 'skip', norm })
      }
      const step = captured ? own(captureStep(call, { device })) : { replay: () => scope(call) }
      const weights = () => [...model.parameters()].map(bits)
      for (const value of [1, Number.NaN, 2]) {
        y.copyFrom(new Float32Array(3).fill(value))
        const before = weights()
        step.replay()
        expect(weights().every((now, i) => now !== before[i])).toBe(!Number.isNaN(value))
      }
      const state = scope(() => optimizers.map((optimizer) => [bitsOf(optimizer.stateDict()), optimizer.skipped]))
      return [state, weights()]
    }
    manualSeed(3)
    const called = run(false)
    manualSeed(3)
    expect(run(true)).toEqual(called)
    expect(called[0].map((state) => state[1])).toEqual([1, 1])
  })

  test('a norm that is given is checked', () => {
    const layer = own(new Linear(2, 2, { device }))
    const optimizer = own(new SGD(layer.parameters(), { lr: 1 }))
    scope(() =>
      layer
        .forward(ones([1, 2], { device }))
        .sum()
        .backward(),
    )
    const before = bits(layer.weight)
    expect(optimizer.step({ ...skip, norm: Infinity })).toBe(false)
    expect(() => optimizer.step({ onNonFinite: 'throw', norm: Number.NaN })).toThrow('all gradients must be finite')
    expect(() => optimizer.step({ norm: 1 })).toThrow("norm is for onNonFinite 'skip' and 'throw', got 'propagate'")
    expect(() => optimizer.step({ ...skip, norm: own(ones([1], { device })) })).toThrow('norm must be [], got [1]')
    expect(() => captureStep(() => void optimizer.step({ ...skip, norm: 1 }), { device })).toThrow(
      '[SGD.step] norm must be a tensor in a captured step (clipGradNorm with wait: false), got 1',
    )
    expect(bits(layer.weight)).toBe(before)
    expect(optimizer.step({ ...skip, norm: 1 })).toBe(true)
  })

  test('each item of a batch of updates has its own norm', () => {
    const make = (values: readonly number[]) => own(tensor(values, null, { device }))
    const norms = [Number.NaN, null, 1, -Infinity].map((value) =>
      value === null ? null : own(full([], value, { device, dtype: 'f64' })),
    )
    const items = norms.map((norm) => {
      const [p, g, m, v] = [
        [1, 1],
        [1, 1],
        [0, 0],
        [0, 0],
      ].map((values) => make(values))
      return { p, g, m, v, norm: norm && handleOf(norm) }
    })
    const changed = () => items.map(({ p, m, v }) => [p, m, v].map((x) => Array.from(x.dataSync(), Number).join()))
    const [untouched] = changed()
    native.adamw(
      items.map(({ p, g, m, v, norm }) => ({
        ...{ p: handleOf(p), g: handleOf(g), m: handleOf(m), v: handleOf(v), norm },
        ...{ step: 1, lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0 },
      })),
    )
    expect(changed().map((item) => item.join() === untouched.join())).toEqual([true, false, false, true])
    const before = changed()
    const views = items.map(({ p, g, m, v }) => [p, g, m, v].map((x) => own(x.reshape([1, 2]))))
    native.adafactor(
      views.map(([p, g, m, v], i) => ({
        ...{
          p: handleOf(p),
          g: handleOf(g),
          m: handleOf(m),
          v: handleOf(v),
          norm: items[i].norm,
          row: null,
          col: null,
        },
        ...{
          step: 1,
          lr: 0.1,
          decayRate: -0.8,
          eps1: 1e-30,
          eps2: 1e-3,
          clip: 1,
          beta1: 0.9,
          weightDecay: 0,
          scale: 1,
        },
      })),
    )
    expect(changed().map((item, i) => item.join() === before[i].join())).toEqual([true, false, false, true])
  })

  test('without the option a captured step has no norm', () => {
    const t = training(device, adamw)
    const calls = [vi.spyOn(native, 'norm'), vi.spyOn(native, 'adamw')]
    const before = memory().tensors
    own(
      captureStep(
        () => {
          t.optimizer.zeroGrad()
          scope(() => t.model.forward(ones([4, 8], { device }), ones([2, 3], { device })).backward())
          t.optimizer.step()
        },
        { device },
      ),
    )
    const parameters = 4
    expect(memory().tensors - before).toBe(parameters * 3) // a gradient and two moments each
    expect(calls[0]).not.toHaveBeenCalled()
    expect(calls[1]).toHaveBeenCalledTimes(1)
    for (const call of calls) call.mockRestore()
  })

  test('what a captured step cannot do, and nothing is left of the attempt', () => {
    const t = training(device, adamw, skip)
    const refused = (fn: () => void, text: string) => {
      const before = memory().tensors
      expect(() => captureStep(fn, { device })).toThrow(
        expect.objectContaining({ code: 'UNSUPPORTED', message: expect.stringContaining(text) }),
      )
      expect(memory().tensors).toBeLessThanOrEqual(before + 8) // moments of four parameters
    }
    for (const [first, second] of [
      [skip, skip],
      [skip, undefined],
      [undefined, skip],
    ])
      refused(() => {
        t.step(first)
        t.optimizer.step(second)
      }, "[AdamW.step] with onNonFinite: 'skip' a captured step has one step of an optimizer, got a second")
    refused(() => t.step({ onNonFinite: 'throw' }), 'onNonFinite waits for the device, which a captured step cannot do')
    const twice = () => {
      t.step({})
      t.optimizer.step()
    }
    own(captureStep(twice, { device }))
  })
})

test('an asynchronous call refuses to decide', async () => {
  const t = training('cpu', makers.AdamW, skip)
  await expect(trainStepAsync(() => t.step())).rejects.toThrow('onNonFinite waits for the device')
})
