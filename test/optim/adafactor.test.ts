import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import {
  Adafactor,
  type AdafactorOptions,
  captureStep,
  loadCheckpoint,
  Module,
  memory,
  Parameter,
  randn,
  resetPeakMemory,
  SGD,
  saveCheckpoint,
  scope,
  tensor,
  trainStepAsync,
} from '../../lib/index.js'
import { any } from '../support/bad-input.js'
import { useEmulator } from '../support/emulator.js'
import type { Float } from '../support/golden-case.js'
import { Draw, relativeError, values } from '../support/numbers.js'

const built = useEmulator()
const folder = mkdtempSync(join(tmpdir(), 'st-moe-adafactor-'))
afterAll(() => rmSync(folder, { recursive: true }))

const shapes = [[], [5], [1, 1], [7, 3], [300, 130], [3, 4, 6], [2, 3, 2, 5], [20000]]
const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1)
const rms = (x: Float64Array) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length)

/** The algorithm for one tensor, in float64: Shazeer and Stern, algorithms 4 and 5. */
class Plain {
  readonly #shape: readonly number[]
  readonly #options: Required<AdafactorOptions>
  readonly #second = new Map<string, number>()
  readonly p: Float64Array
  readonly #m: Float64Array
  #t = 0

  constructor(p: Float64Array, shape: readonly number[], options: Required<AdafactorOptions>) {
    this.p = p.slice()
    this.#m = new Float64Array(p.length)
    this.#shape = shape
    this.#options = options
  }

  /** The moment with this name after another mean of squares. */
  #moment(name: string, square: number): number {
    const beta = 1 - this.#t ** this.#options.decayRate
    const value = beta * (this.#second.get(name) ?? 0) + (1 - beta) * (square + this.#options.eps[0])
    this.#second.set(name, value)
    return value
  }

  #update(g: Float64Array): Float64Array {
    if (this.#shape.length < 2) return g.map((value, i) => value / Math.sqrt(this.#moment(`${i}`, value * value)))
    const [R, D] = this.#shape.slice(-2)
    const u = new Float64Array(g.length)
    for (let first = 0; first < g.length; first += R * D) {
      const at = (i: number, j: number) => first + i * D + j
      const sum = (n: number, f: (k: number) => number) =>
        Array.from({ length: n }, (_, k) => f(k)).reduce((a, b) => a + b)
      const rows = Array.from({ length: R }, (_, i) =>
        this.#moment(`row ${first} ${i}`, sum(D, (j) => g[at(i, j)] ** 2) / D),
      )
      const cols = Array.from({ length: D }, (_, j) =>
        this.#moment(`col ${first} ${j}`, sum(R, (i) => g[at(i, j)] ** 2) / R),
      )
      const mean = sum(R, (i) => rows[i]) / R
      for (let i = 0; i < R; i++)
        for (let j = 0; j < D; j++) u[at(i, j)] = g[at(i, j)] / Math.sqrt((rows[i] * cols[j]) / mean)
    }
    return u
  }

  step(g: Float64Array, lr: number): void {
    const { relativeStep, scaleParameter, eps, clipThreshold, beta1, weightDecay } = this.#options
    this.#t++
    const u = this.#update(g)
    const rate =
      (relativeStep ? Math.min(lr, 1 / Math.sqrt(this.#t)) : lr) * (scaleParameter ? Math.max(eps[1], rms(this.p)) : 1)
    const clip = Math.max(1, rms(u) / clipThreshold)
    for (let i = 0; i < g.length; i++) {
      let step = (rate * u[i]) / clip
      if (beta1 !== null) step = this.#m[i] = beta1 * this.#m[i] + (1 - beta1) * step
      this.p[i] -= weightDecay * rate * this.p[i] + step
    }
  }
}

const defaults: Required<AdafactorOptions> = {
  lr: 1e-2,
  relativeStep: true,
  scaleParameter: true,
  eps: [1e-30, 1e-3],
  clipThreshold: 1,
  decayRate: -0.8,
  beta1: null,
  weightDecay: 0,
}

const cases: Partial<AdafactorOptions>[] = [
  {},
  { lr: 0.3, weightDecay: 0.1, beta1: 0.9 },
  { lr: 0.02, relativeStep: false, scaleParameter: false, clipThreshold: 0.4, decayRate: -0.5 },
  { lr: 0.02, relativeStep: false, eps: [1e-3, 2], beta1: 0, weightDecay: 0.01 },
]

describe.each<Float>(['f32', 'f64'])('%s', (dtype) => {
  test.each(cases)('%o equals the plain algorithm, tensor by tensor', (options) =>
    scope(() => {
      const draw = new Draw(5)
      const numbers = (shape: readonly number[], scale: number) =>
        draw.array(sizeOf(shape), () => Math.fround(scale * draw.normal()))
      const starts = shapes.map((shape, i) => numbers(shape, 10 ** (i % 3)))
      const parameters = starts.map((p, i) => new Parameter(tensor(p, shapes[i], { dtype })))
      const plain = starts.map((p, i) => new Plain(p, shapes[i], { ...defaults, ...options }))
      using optimizer = new Adafactor(parameters, options)
      for (let t = 1; t <= 5; t++) {
        if (t === 4) optimizer.lr *= 0.5
        for (const [i, parameter] of parameters.entries()) {
          if (t === 2 && i % 3 === 0) continue // no gradient
          const g = numbers(shapes[i], 10 ** draw.integer(-3, 1))
          parameter.grad = tensor(g, shapes[i], { dtype })
          plain[i].step(g, optimizer.lr)
        }
        optimizer.step()
        optimizer.zeroGrad()
      }
      for (const [i, parameter] of parameters.entries())
        expect(relativeError(values(parameter), plain[i].p), `[${shapes[i]}]`).toBeLessThan(
          dtype === 'f32' ? 1e-5 : 1e-13,
        )
    }),
  )
})

const parametersOf = (device?: 'cuda') =>
  shapes.map(
    (shape) =>
      new Parameter(
        tensor(
          new Float32Array(sizeOf(shape)).map((_, i) => Math.sin(i)),
          shape,
          { device },
        ),
      ),
  )
const give = (parameters: readonly Parameter[], t: number) => {
  for (const [i, p] of parameters.entries())
    p.grad = tensor(
      new Float32Array(p.size).map((_, j) => Math.cos(j * t + i)),
      p.shape,
      { device: p.device },
    )
}
const numbersOf = (parameters: readonly Parameter[]) => parameters.map((p) => Array.from(p.dataSync()))

test('a batch gives the bits of one tensor after another', () =>
  scope(() => {
    const [together, alone] = [parametersOf(), parametersOf()]
    const optimizers = [new Adafactor(together), ...alone.map((p) => new Adafactor([p]))]
    for (const t of [1, 2]) {
      give(together, t)
      give(alone, t)
      for (const optimizer of optimizers) optimizer.step()
    }
    expect(numbersOf(together)).toEqual(numbersOf(alone))
  }))

test('the state is one moment per row and column of each matrix, and survives a checkpoint', async () => {
  class Net extends Module {
    list = parametersOf()
    forward() {}
  }
  const make = () => {
    const model = new Net()
    return { model, optimizer: new Adafactor(model.list, { beta1: 0.5, weightDecay: 0.1 }) }
  }
  const run = make()
  give(run.model.list, 1)
  run.optimizer.step()
  const state = scope(() => Object.entries(run.optimizer.stateDict()).map(([name, { shape }]) => `${name} ${shape}`))
  expect(state.filter((name) => /^[15]\./.test(name))).toEqual([
    '1.step ',
    '1.exp_avg_sq 5',
    '1.exp_avg 5',
    '5.step ',
    '5.exp_avg_sq_row 3,4',
    '5.exp_avg_sq_col 3,6',
    '5.exp_avg 3,4,6',
  ])
  const file = join(folder, 'run.safetensors')
  await saveCheckpoint(file, { ...run, step: 1 })
  const resumed = make()
  resumed.optimizer.weightDecay = 0
  await loadCheckpoint(file, resumed)
  for (const { model, optimizer } of [run, resumed]) {
    give(model.list, 2)
    optimizer.step()
  }
  expect(numbersOf(resumed.model.list)).toEqual(numbersOf(run.model.list))
  const other = new Adafactor(run.model.list)
  await expect(loadCheckpoint(file, { model: run.model, optimizer: other })).resolves.toBeTruthy()
  expect(other.beta1).toBe(0.5)
  scope(() => {
    const negative = { ...other.stateDict(), '5.exp_avg_sq_row': tensor(new Float32Array(12).fill(-1), [3, 4]) }
    expect(() => other.loadStateDict(negative)).toThrow(/5\.exp_avg_sq_row must hold finite numbers of at least 0/)
  })
})

test.skipIf(!built)('in a captured step replays return the bits of the loop', () => {
  const run = (replays: boolean) => {
    const parameters = parametersOf('cuda')
    using optimizer = new Adafactor(parameters, { beta1: 0.9, weightDecay: 0.1 })
    give(parameters, 1)
    const step = () => void optimizer.step()
    using captured = replays ? captureStep(step, { device: 'cuda' }) : null
    for (let t = 1; t <= 3; t++) {
      optimizer.lr = 0.8 / t
      optimizer.scaleParameter = t < 3
      captured ? captured.replay() : step()
    }
    return numbersOf(parameters)
  }
  expect(run(true)).toEqual(run(false))
})

test.each<[object, RegExp]>([
  [{ beta1: 1 }, /beta1 must be null or below 1, got 1/],
  [{ beta1: '0' }, /beta1 must be a finite number/],
  [{ eps: [1] }, /eps must be two numbers, got 1/],
  [{ eps: [1e-30, -1] }, /eps\[1\] must be a finite number from 0/],
  [{ clipThreshold: 0 }, /clipThreshold must be a finite number from 5e-324/],
  [{ decayRate: 0.8 }, /decayRate must be a finite number from -Infinity to 0/],
  [{ relativeStep: 1 }, /relativeStep must be true or false/],
])('%o is an error', (options, text) => {
  expect(() => new Adafactor([], any(options))).toThrow(text)
})

test('it takes memory, so an asynchronous call copies first what it has updated before', async () => {
  const parameter = scope(() => new Parameter(randn([70, 60])))
  parameter.grad = randn([70, 60])
  const [first, second] = [new SGD([parameter], { lr: 0.1 }), new Adafactor([parameter])]
  second.step() // makes its state
  resetPeakMemory()
  const { bytes } = memory()
  await trainStepAsync(() => {
    first.step()
    second.step()
  })
  expect(memory().peakBytes - bytes).toBe(4 * parameter.size)
  for (const owned of [parameter, second]) owned.dispose()
})
