import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import {
  Adafactor,
  type AdafactorOptions,
  ConstantSchedule,
  CosineSchedule,
  InverseSqrtSchedule,
  LinearSchedule,
  loadSafetensorsSync,
  manualSeed,
  Parameter,
  PlateauSchedule,
  randn,
  type Schedule,
  type ScheduledOptimizer,
  SGD,
  saveSafetensorsSync,
  scope,
} from '../../lib/index.js'
import { relativeError, runSeed, values } from '../support/numbers.js'
import { pythonFor, pythonPatience, referencePython, runScript } from '../support/python.js'

// Schedules and Adafactor against those of PyTorch and transformers themselves: ST_MOE_SEED=<n> samples other numbers.

const seed = runSeed()
const folder = mkdtempSync(join(tmpdir(), 'st-moe-optim-parity-'))
let found: ReturnType<typeof referencePython>
vi.setConfig({ testTimeout: pythonPatience, hookTimeout: pythonPatience })
beforeAll(() => {
  found = referencePython()
})
afterAll(() => rmSync(folder, { recursive: true }))

const base = [1e-3, 0.7]
const count = 40
const metrics = Array.from({ length: count }, (_, i) => 3 + Math.cos(i * 1.7) / (1 + i / 9))
const schedules: { name: string; args: object; make: (o: ScheduledOptimizer) => Schedule; metrics?: number[] }[] = [
  {
    name: 'torch.cosine',
    args: { warm_up: 7, T_max: 33 },
    make: (o) => new CosineSchedule(o, { steps: 40, warmUp: 7 }),
  },
  {
    name: 'torch.linear',
    args: { warm_up: 5, start_factor: 1, end_factor: 0.25, total_iters: 20 },
    make: (o) => new LinearSchedule(o, { steps: 25, warmUp: 5, minRatio: 0.25 }),
  },
  {
    name: 'constant',
    args: { num_warmup_steps: 9 },
    make: (o) => new ConstantSchedule(o, { warmUp: 9, fromZero: true }),
  },
  {
    name: 'linear',
    args: { num_warmup_steps: 4, num_training_steps: 31 },
    make: (o) => new LinearSchedule(o, { steps: 31, warmUp: 4, fromZero: true }),
  },
  {
    name: 'cosine',
    args: { num_warmup_steps: 4, num_training_steps: 40, min_lr_rate: 0.1 },
    make: (o) => new CosineSchedule(o, { steps: 40, warmUp: 4, fromZero: true, minRatio: 0.1 }),
  },
  {
    name: 'inverse_sqrt',
    args: { num_warmup_steps: 6 },
    make: (o) => new InverseSqrtSchedule(o, { warmUp: 6, fromZero: true }),
  },
  {
    name: 'inverse_sqrt',
    args: { num_warmup_steps: 6, timescale: 50 },
    make: (o) => new InverseSqrtSchedule(o, { warmUp: 6, fromZero: true, timescale: 50 }),
  },
  ...[
    { mode: 'min', patience: 2, factor: 0.5, threshold: 0.02, cooldown: 3 },
    { mode: 'max', patience: 0, factor: 0.9, threshold: 0.1, cooldown: 0, thresholdMode: 'abs' },
  ].map(({ thresholdMode = 'rel', ...options }) => ({
    name: 'torch.plateau',
    args: { ...options, threshold_mode: thresholdMode, eps: 0 },
    metrics,
    make: (o: ScheduledOptimizer) => new PlateauSchedule(o, { ...options, thresholdMode } as object),
  })),
]

test('schedules', (context) => {
  const python = pythonFor(context, found)
  const cases = schedules.map(({ name, args, metrics }) => ({ name, args, metrics, base, count }))
  writeFileSync(join(folder, 'cases.json'), JSON.stringify(cases))
  runScript(python, 'optimizers.py', 'schedules', folder)
  const theirs = JSON.parse(readFileSync(join(folder, 'rates.json'), 'utf8')) as number[][][]
  for (const [i, { name, args, make }] of schedules.entries()) {
    const optimizer = new SGD(base.map((lr) => ({ params: [], lr })))
    const schedule = make(optimizer)
    const ours = metrics.map((metric) => {
      const rates = optimizer.groups.map(({ lr }) => lr)
      if (schedule instanceof PlateauSchedule) schedule.step(metric)
      else (schedule as ConstantSchedule).step()
      return rates
    })
    expect(relativeError(ours.flat(), theirs[i].flat()), `${name} ${JSON.stringify(args)}`).toBeLessThan(1e-12)
    expect(new Set(ours.flat()).size).toBeGreaterThan(4)
  }
})

const usual = { scale_parameter: true, relative_step: true }
const optimizers: Record<string, [pack: string, args: object, options: AdafactorOptions]> = {
  defaults: ['transformers', usual, {}],
  torch: ['torch', { lr: 0.4 }, { lr: 0.4 }],
  moment: ['transformers', { ...usual, beta1: 0.9, weight_decay: 0.1 }, { beta1: 0.9, weightDecay: 0.1 }],
  fixed: [
    'transformers',
    {
      lr: 0.05,
      scale_parameter: false,
      relative_step: false,
      clip_threshold: 0.5,
      decay_rate: -0.6,
      weight_decay: 0.02,
    },
    { lr: 0.05, scaleParameter: false, relativeStep: false, clipThreshold: 0.5, decayRate: -0.6, weightDecay: 0.02 },
  ],
}

test(`Adafactor (seed ${seed})`, (context) => {
  const python = pythonFor(context, found)
  scope(() => {
    manualSeed(seed)
    const shapes = [[13], [9, 17], [300, 40], [3, 8, 20]]
    const steps = 6
    const named = (prefix: string) =>
      shapes.map((shape, i) => [`${prefix}.${i}`, randn(shape, { dtype: 'f64' })] as const)
    const given = Object.fromEntries([
      ...named('p'),
      ...Array.from({ length: steps }, (_, t) => named(`g.${t}`)).flat(),
    ])
    const theirOptimizers = Object.fromEntries(
      Object.entries(optimizers).map(([name, [pack, args]]) => [name, [pack, args]]),
    )
    saveSafetensorsSync(join(folder, 'given.safetensors'), given, {
      metadata: { optimizers: JSON.stringify(theirOptimizers) },
    })
    runScript(python, 'optimizers.py', 'adafactor', folder)
    const { tensors } = loadSafetensorsSync(join(folder, 'stepped.safetensors'))
    for (const [name, [, , options]] of Object.entries(optimizers))
      for (const dtype of ['f32', 'f64'] as const) {
        const parameters = shapes.map((_, i) => new Parameter(given[`p.${i}`].to(dtype).clone()))
        const optimizer = new Adafactor(parameters, options)
        for (let t = 0; t < steps; t++) {
          for (const [i, p] of parameters.entries()) p.grad = given[`g.${t}.${i}`].to(dtype).clone()
          optimizer.step()
        }
        for (const [i, p] of parameters.entries()) {
          const error = relativeError(values(p), values(tensors[`${name}.${i}`]))
          expect(error, `${name} ${dtype} [${shapes[i]}]`).toBeLessThan(dtype === 'f32' ? 1e-6 : 1e-12)
        }
      }
  })
})
