import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import {
  AdamW,
  ConstantSchedule,
  CosineSchedule,
  InverseSqrtSchedule,
  Linear,
  LinearSchedule,
  loadCheckpoint,
  loadSafetensorsSync,
  Optimizer,
  Parameter,
  PlateauSchedule,
  type Schedule,
  type ScheduledOptimizer,
  SGD,
  type StepSchedule,
  saveCheckpoint,
  saveSafetensorsSync,
  zeros,
} from '../../lib/index.js'
import { any } from '../support/bad-input.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-schedules-'))
afterAll(() => rmSync(folder, { recursive: true }))

const some = () => [new Parameter(zeros([1]))]
const withRates = (...rates: number[]) => new SGD(rates.map((lr) => ({ params: some(), lr })))
const ratesOf = ({ groups }: ScheduledOptimizer) => groups.map(({ lr }) => lr)

/** The rates of the first `count` steps. */
function rates(schedule: StepSchedule<object>, count: number): number[] {
  return Array.from({ length: count }, () => {
    const [lr] = ratesOf(schedule.optimizer)
    schedule.step()
    return lr
  })
}

describe('factors of the base', () => {
  const cases: [string, (o: ScheduledOptimizer) => StepSchedule<object>, number[]][] = [
    ['constant', (o) => new ConstantSchedule(o), [1, 1, 1]],
    ['constant after warm-up', (o) => new ConstantSchedule(o, { warmUp: 4 }), [0.25, 0.5, 0.75, 1, 1, 1]],
    ['warm-up from 0', (o) => new ConstantSchedule(o, { warmUp: 2, fromZero: true }), [0, 0.5, 1, 1]],
    ['linear', (o) => new LinearSchedule(o, { steps: 4 }), [1, 0.75, 0.5, 0.25, 0, 0]],
    [
      'linear to a part',
      (o) => new LinearSchedule(o, { steps: 4, warmUp: 2, minRatio: 0.5 }),
      [0.5, 1, 1, 0.75, 0.5, 0.5],
    ],
    ['cosine', (o) => new CosineSchedule(o, { steps: 4, warmUp: 1 }), [1, 1, 0.75, 0.25, 0, 0]],
    ['cosine to a part', (o) => new CosineSchedule(o, { steps: 2, minRatio: 0.2 }), [1, 0.6, 0.2, 0.2]],
    ['warm-up to the end', (o) => new CosineSchedule(o, { steps: 2, warmUp: 2 }), [0.5, 1, 1, 0]],
    [
      'inverse square root',
      (o) => new InverseSqrtSchedule(o, { warmUp: 4 }),
      [0.25, 0.5, 0.75, 1, 1, Math.sqrt(4 / 5)],
    ],
    ['with a time scale', (o) => new InverseSqrtSchedule(o, { timescale: 3 }), [1, Math.sqrt(3 / 4), Math.sqrt(3 / 5)]],
    ['without', (o) => new InverseSqrtSchedule(o), [1, Math.sqrt(10000 / 10001)]],
  ]
  test.each(cases)('%s', (_, make, factors) => {
    const optimizer = withRates(0.4, 3)
    const schedule = make(optimizer)
    for (const [count, factor] of factors.entries()) {
      expect(schedule.count).toBe(count)
      expect(ratesOf(optimizer)).toEqual([0.4, 3].map((base) => expect.closeTo(base * factor, 14)))
      schedule.step()
    }
    schedule.moveTo(1)
    expect(ratesOf(optimizer)[0]).toBeCloseTo(0.4 * factors[1], 14)
  })
})

test('the rates of st-moe train are those of the formula that its runs have used, bit for bit', () => {
  const [steps, highest, warmUp] = [2000, 4e-3, 100]
  const formula = (step: number) => {
    if (step < warmUp) return (highest * (step + 1)) / warmUp
    const progress = (step - warmUp) / Math.max(1, steps - warmUp)
    return highest * (0.02 + 0.98 * 0.5 * (1 + Math.cos(Math.PI * progress)))
  }
  const schedule = new CosineSchedule(withRates(highest), { steps, warmUp, minRatio: 0.02 })
  expect(rates(schedule, steps)).toEqual(Array.from({ length: steps }, (_, step) => formula(step)))
})

describe('on a plateau', () => {
  const factors = (options: object, metrics: readonly number[]) => {
    const optimizer = withRates(1)
    const schedule = new PlateauSchedule(optimizer, options)
    return metrics.map((metric) => {
      schedule.step(metric)
      return optimizer.lr
    })
  }
  test('the rates fall after `patience` steps that bring nothing better', () => {
    const options = { factor: 0.5, patience: 1 }
    expect(factors(options, [2, 1, 1, 1, 1, 1, 0.5, 0.5])).toEqual([1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25])
    expect(factors({ ...options, mode: 'max' }, [1, 2, 2, 2, 3])).toEqual([1, 1, 1, 0.5, 0.5])
    expect(factors({ ...options, cooldown: 2 }, [1, 1, 1, 1, 1, 1, 1])).toEqual([1, 1, 0.5, 0.5, 0.5, 0.5, 0.25])
    expect(factors({ ...options, patience: 0, minRatio: 0.3 }, [1, 1, 1, 1])).toEqual([1, 0.5, 0.3, 0.3])
  })
  test('a better metric is so by the threshold', () => {
    const options = { factor: 0.5, patience: 0, threshold: 0.1 }
    expect(factors(options, [10, 9.1, 8.9])).toEqual([1, 0.5, 0.5])
    expect(factors({ ...options, thresholdMode: 'abs' }, [10, 9.95, 9.8])).toEqual([1, 0.5, 0.5])
    expect(factors({ ...options, mode: 'max' }, [10, 10.9, 11.1])).toEqual([1, 0.5, 0.5])
  })
  test('a metric that is not finite is an error', () => {
    const schedule = new PlateauSchedule(withRates(1))
    expect(() => schedule.step(Number.NaN)).toThrow('[PlateauSchedule.step] metric must be a finite number, got NaN')
    expect(schedule.count).toBe(0)
  })
})

describe('in a checkpoint', () => {
  const file = join(folder, 'run.safetensors')
  const make = (
    lr = 1 / 3,
  ): {
    model: Linear
    optimizer: AdamW
    schedule: { cosine: CosineSchedule; plateau: PlateauSchedule }
  } => {
    const model = new Linear(2, 1)
    const optimizer = new AdamW([
      { params: [model.weight], lr },
      { params: [model.bias!], lr: 0.7 },
    ])
    const cosine = new CosineSchedule(optimizer, { steps: 17, warmUp: 3 })
    const plateau = new PlateauSchedule(withRates(0.3), { patience: 0, factor: 0.7 })
    return { model, optimizer, schedule: { cosine, plateau } }
  }

  test('schedules continue bit for bit, with the options and the base of the saved ones', async () => {
    const run = make()
    for (let i = 0; i < 5; i++) run.schedule.cosine.step()
    for (const metric of [3, 4]) run.schedule.plateau.step(metric)
    await saveCheckpoint(file, { ...run, step: 5 })
    const resumed = make(5)
    const { cosine, plateau } = resumed.schedule
    cosine.setState({ ...cosine.toJSON(), options: { steps: 99 } })
    plateau.step(1e-9)
    resumed.optimizer.lr = 0
    await loadCheckpoint(file, resumed)
    expect([cosine.toJSON(), plateau.toJSON()]).toEqual([run.schedule.cosine.toJSON(), run.schedule.plateau.toJSON()])
    for (let i = 0; i < 12; i++) {
      expect(ratesOf(resumed.optimizer)).toEqual(ratesOf(run.optimizer))
      expect(ratesOf(plateau.optimizer)).toEqual(ratesOf(run.schedule.plateau.optimizer))
      for (const { schedule } of [run, resumed]) {
        schedule.cosine.step()
        schedule.plateau.step(3.5 - i)
      }
    }
    expect(plateau.options).toMatchObject({ patience: 0, factor: 0.7 })
  })

  test('a state that does not fit changes nothing', async () => {
    const run = make()
    await saveCheckpoint(file, { ...run, step: 0 })
    const { tensors, metadata } = loadSafetensorsSync(file)
    const about = JSON.parse(metadata['st-moe.checkpoint'])
    const changes: [object, RegExp][] = [
      [{ count: -1 }, /the state of schedule "cosine" does not fit: count must be an integer of at least 0, got -1/],
      [{ base: [1] }, /base must hold 2 learning rates, got 1/],
      [{ base: [1, -1] }, /base\[1\] must be a finite number/],
      [{ kind: 'LinearSchedule' }, /state must be of CosineSchedule, got "LinearSchedule"/],
      [{ options: { steps: 0 } }, /steps must be an integer of at least 1/],
      [{ options: {} }, /steps must be an integer/],
      [{ best: 1 }, /unknown option "best"/],
    ]
    for (const [change, text] of changes) {
      const changed = structuredClone(about)
      Object.assign(changed.schedules[0].options, change)
      saveSafetensorsSync(file, tensors, { metadata: { 'st-moe.checkpoint': JSON.stringify(changed) } })
      const other = make()
      const before = JSON.stringify([other.schedule, ratesOf(other.optimizer)])
      const error = { code: 'STATE_DICT', message: expect.stringMatching(text) }
      await expect(loadCheckpoint(file, other)).rejects.toMatchObject(error)
      expect(JSON.stringify([other.schedule, ratesOf(other.optimizer)])).toBe(before)
    }
  })

  test('that holds none, or is given something else', async () => {
    const { model, optimizer, schedule } = make()
    await saveCheckpoint(file, { model, optimizer, step: 0 })
    await expect(loadCheckpoint(file, { model, schedule: schedule.cosine })).rejects.toThrow(/holds no schedule state/)
    const wrong = { model, step: 0, schedule: any(optimizer) }
    await expect(saveCheckpoint(file, wrong)).rejects.toThrow(/schedule must be a schedule, or an object of schedules/)
    await expect(saveCheckpoint(file, { ...wrong, schedule: any({ a: 1 }) })).rejects.toThrow(
      /schedule\["a"\] must be a schedule, got 1/,
    )
  })
})

test.each<[string, () => Schedule, RegExp]>([
  [
    'no optimizer',
    () => new ConstantSchedule(any({ groups: [{ lr: 1 }] })),
    /\[ConstantSchedule\] optimizer must be an optimizer/,
  ],
  [
    'no learning rate',
    () => new ConstantSchedule(any(new Plain())),
    /optimizer\.groups\[0\]\.lr must be a finite number/,
  ],
  [
    'no steps',
    () => new LinearSchedule(withRates(1), any({})),
    /\[LinearSchedule\] steps must be an integer of at least 1/,
  ],
  [
    'a long warm-up',
    () => new CosineSchedule(withRates(1), { steps: 3, warmUp: 4 }),
    /warmUp must be at most steps = 3, got 4/,
  ],
  [
    'a ratio above 1',
    () => new CosineSchedule(withRates(1), { steps: 3, minRatio: 2 }),
    /minRatio must be a finite number from 0 to 1/,
  ],
])('%s is an error', (_, make, text) => {
  expect(make).toThrow(expect.objectContaining({ code: 'OPTION', message: expect.stringMatching(text) }))
})

class Plain extends Optimizer {
  constructor() {
    super('Plain', some(), {})
  }
  protected override stateTensors() {
    return {}
  }
  protected override checkedOptions() {
    return {}
  }
  protected override update(): void {}
}
