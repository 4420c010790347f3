import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import {
  AdamW,
  type Checkpoint,
  defaultGenerator,
  full,
  Generator,
  Linear,
  loadCheckpoint,
  loadSafetensorsSync,
  type Module,
  manualSeed,
  memory,
  type Optimizer,
  SGD,
  saveCheckpoint,
  saveSafetensors,
  scope,
  tensor,
  zeros,
} from '../../lib/index.js'
import { runChild } from '../support/child.js'
import { some } from '../support/numbers.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-checkpoint-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** Output of training in its own process: the loss of each step, and a hash of all parameters. */
async function train(...args: (string | number)[]): Promise<string[]> {
  const { code, stdout, stderr } = await runChild('resumable-run.mjs', args.map(String))
  expect([code, stderr]).toEqual([0, ''])
  return stdout.trim().split('\n')
}

test.each(some(['AdamW', 'SGD'], 1))(
  '10 steps, a checkpoint, a new process and 10 more are 20 steps, bit for bit: %s',
  async (kind) => {
    const file = join(folder, `${kind}.safetensors`)
    const whole = await train(20, '-', '-', kind, 1)
    const first = await train(10, '-', file, kind, 1)
    const second = await train(10, file, '-', kind, 2)
    expect(whole).toHaveLength(21)
    expect([...first.slice(0, 10), ...second]).toEqual(whole)
    const restarted = await train(20, '-', '-', kind, 2)
    expect(restarted).toEqual(whole)
  },
)

class Net extends Linear {}

const numbersOf = (source: Module | Optimizer) =>
  Object.entries(source.stateDict()).map(([name, t]) => [name, ...Array.from(t.dataSync())])

function step(model: Net, optimizer: Optimizer): void {
  scope(() =>
    model
      .forward(full([4, 3], 0.5))
      .square()
      .sum()
      .backward(),
  )
  optimizer.step()
  optimizer.zeroGrad()
}

async function trained(file: string) {
  const model = new Net(3, 2)
  const optimizer = new AdamW(model.parameters())
  step(model, optimizer)
  const generator = new Generator(8, 3)
  await saveCheckpoint(file, { model, optimizer, generator, step: 1, extra: { epoch: 2, names: ['a'] } })
  return { model, optimizer, generator }
}

test('step, extra and generator come back', async () => {
  const file = join(folder, 'small.safetensors')
  const { model } = await trained(file)
  const [fresh, generator] = [new Net(3, 2), new Generator()]
  const optimizer = new AdamW(fresh.parameters())
  expect(await loadCheckpoint(file, { model: fresh, optimizer, generator })).toEqual({
    step: 1,
    extra: { epoch: 2, names: ['a'] },
  })
  expect(numbersOf(fresh)).toEqual(numbersOf(model))
  expect([generator.seed, generator.step]).toEqual([8, 3])
  expect(Object.keys(optimizer.stateDict())).toEqual([
    '0.step',
    '0.exp_avg',
    '0.exp_avg_sq',
    '1.step',
    '1.exp_avg',
    '1.exp_avg_sq',
  ])
})

test('a checkpoint that does not fit changes nothing', async () => {
  const file = join(folder, 'small.safetensors')
  await trained(file)
  const [wide, model] = [new Net(4, 2), new Net(3, 2)]
  const before = numbersOf(model)
  await expect(loadCheckpoint(file, { model: wide })).rejects.toMatchObject({ code: 'STATE_DICT' })
  const otherOptimizer = new SGD(model.parameters(), { momentum: 0.9 })
  await expect(loadCheckpoint(file, { model, optimizer: otherOptimizer })).rejects.toMatchObject({ code: 'STATE_DICT' })
  expect(numbersOf(model)).toEqual(before)
  expect(otherOptimizer.stateDict()).toEqual({})

  const bare = join(folder, 'bare.safetensors')
  await saveCheckpoint(bare, { model, step: 0 })
  const optimizer = new AdamW(model.parameters())
  await expect(loadCheckpoint(bare, { model, optimizer })).rejects.toMatchObject({ code: 'STATE_DICT' })
})

describe('options of optimizers', () => {
  const file = join(folder, 'options.safetensors')

  test('are restored with the state: the next step is the same, whatever the options of the new optimizer', async () => {
    const kinds: [(model: Net) => Optimizer, (model: Net) => Optimizer][] = [
      [
        (model) => new AdamW(model.parameters(), { lr: 0.1, betas: [0.5, 0.7], eps: 1e-3, weightDecay: 0.3 }),
        (model) => new AdamW(model.parameters()),
      ],
      [
        (model) => new SGD(model.parameters(), { lr: 0.1, momentum: 0.7, weightDecay: 0.2 }),
        (model) => new SGD(model.parameters()),
      ],
      [(model) => new SGD(model.parameters()), (model) => new SGD(model.parameters(), { momentum: 0.9 })],
    ]
    for (const [make, other] of kinds) {
      const model = new Net(3, 2)
      const optimizer = make(model)
      step(model, optimizer)
      Object.assign(optimizer, { lr: 0.025 }) // as a schedule does
      await saveCheckpoint(file, { model, optimizer, step: 1 })
      const resumed = new Net(3, 2)
      const restored = other(resumed)
      await loadCheckpoint(file, { model: resumed, optimizer: restored })
      expect(restored).toMatchObject({ lr: 0.025 })
      for (let i = 0; i < 2; i++) {
        step(model, optimizer)
        step(resumed, restored)
      }
      expect(numbersOf(resumed)).toEqual(numbersOf(model))
      expect(numbersOf(restored)).toEqual(numbersOf(optimizer))
    }
  })

  test('that are invalid are not saved, and the file from before stays', async () => {
    const { model, optimizer } = await trained(file)
    const before = readFileSync(file)
    optimizer.lr = Number.NaN
    await expect(saveCheckpoint(file, { model, optimizer, step: 1 })).rejects.toMatchObject({
      code: 'OPTION',
      message: '[saveCheckpoint] lr must be a finite number from 0 to Infinity, got NaN',
    })
    expect(readFileSync(file).equals(before)).toBe(true)
  })

  test.each<[string, (options: Record<string, unknown>) => unknown, RegExp]>([
    ['a negative rate', (o) => ({ ...o, lr: -1 }), /option lr must be a finite number/],
    ['a beta of 1', (o) => ({ ...o, betas: [0.9, 1] }), /option betas\[1\] must be below 1, got 1/],
    ['three betas', (o) => ({ ...o, betas: [0.9, 0.9, 0.9] }), /option betas must have at most 2/],
    ['no eps', ({ eps: _, ...o }) => o, /option eps must be a finite number/],
    ['an unknown option', (o) => ({ ...o, momentum: 0.9 }), /unexpected: option momentum/],
    ['a list', () => [1, 2], /options are of 2 groups, the optimizer has 1/],
    ['null', () => null, /options must be an object, got null/],
  ])('from a file with %s change nothing', async (_, change, text) => {
    await trained(file)
    const { tensors, metadata } = loadSafetensorsSync(file)
    const about = JSON.parse(metadata['st-moe.checkpoint'])
    const [{ parameters: _count, ...options }] = about.optimizers[0].options
    about.optimizers[0].options = change(options) // as earlier versions wrote them
    await saveSafetensors(file, tensors, { metadata: { ...metadata, 'st-moe.checkpoint': JSON.stringify(about) } })
    const message = expect.stringMatching(text)
    await expectUnchanged((targets) => loadCheckpoint(file, targets), { code: 'STATE_DICT', message })
  })
})

/** Loads into a model and all that belongs to it, which must fail and leave them as they are. */
async function expectUnchanged(
  act: (targets: { model: Net; optimizer: AdamW; generator: Generator }) => Promise<unknown>,
  error: object,
): Promise<void> {
  const model = new Net(3, 2)
  const optimizer = new AdamW(model.parameters(), { lr: 0.5 })
  step(model, optimizer)
  const generator = new Generator(1, 2)
  const state = () => [numbersOf(model), numbersOf(optimizer), optimizer.lr, generator.seed, generator.step]
  const before = state()
  await expect(act({ model, optimizer, generator })).rejects.toMatchObject({ name: 'MoeError', ...error })
  expect(state()).toEqual(before)
}

describe('several optimizers', () => {
  const file = join(folder, 'several.safetensors')
  const parts = (model: Net) => ({
    weight: new AdamW([model.weight], { lr: 0.1 }),
    bias: new SGD([model.bias!], { lr: 0.2, momentum: 0.9 }),
  })

  test('are stored by name, even if names look like those of tensors', async () => {
    const model = new Net(3, 2)
    const optimizer = { ...parts(model), 0: new AdamW([model.bias!]) }
    Object.defineProperty(optimizer, '__proto__', { value: new SGD([model.weight]), enumerable: true })
    for (const each of Object.values(optimizer)) step(model, each)
    await saveCheckpoint(file, { model, optimizer, step: 1 })
    const resumed = new Net(3, 2)
    const { weight, bias } = parts(resumed)
    Object.assign(weight, { lr: 0 })
    await loadCheckpoint(file, { model: resumed, optimizer: { bias, weight } })
    expect([numbersOf(resumed), numbersOf(weight), numbersOf(bias), weight.lr]).toEqual([
      numbersOf(model),
      numbersOf(optimizer.weight),
      numbersOf(optimizer.bias),
      0.1,
    ])
  })

  test('that the file does not hold are an error', async () => {
    const model = new Net(3, 2)
    const optimizer = parts(model)
    await saveCheckpoint(file, { model, optimizer, step: 1 })
    const rejects = (targets: Checkpoint['optimizer']) =>
      expect(loadCheckpoint(file, { model, optimizer: targets })).rejects
    await rejects(optimizer.weight).toThrow(
      /holds no state of the optimizer, but of optimizer "weight", optimizer "bias"/,
    )
    await rejects({ other: optimizer.bias }).toThrow(/holds no state of optimizer "other"/)
    await saveCheckpoint(file, { model, optimizer: optimizer.weight, step: 1 })
    await rejects({ weight: optimizer.weight }).toThrow(/holds no state of optimizer "weight", but of the optimizer/)
  })

  test('without a proper name are refused', async () => {
    const model = new Net(3, 2)
    const [first] = Object.values(parts(model))
    const impostor = Object.create(first)
    for (const optimizer of [[first], { 'a.b': first }, { '': first }, { a: {} }, impostor, 7, null])
      await expect(saveCheckpoint(file, { model, optimizer: optimizer as never, step: 1 })).rejects.toMatchObject({
        code: 'OPTION',
      })
  })
})

test('the random state is restored only on request', async () => {
  const file = join(folder, 'random.safetensors')
  const model = new Net(3, 2)
  manualSeed(11)
  await saveCheckpoint(file, { model, step: 0 })
  manualSeed(12)
  await loadCheckpoint(file, { model })
  expect(defaultGenerator.seed).toBe(12)
  await loadCheckpoint(file, { model, generator: defaultGenerator })
  expect([defaultGenerator.seed, defaultGenerator.step]).toEqual([11, 0])
})

test('a file of the time before options were kept loads; options stay as they are', async () => {
  const file = fileURLToPath(new URL('../files/checkpoint-without-options.safetensors', import.meta.url))
  const model = new Net(3, 2)
  const optimizer = new AdamW(model.parameters(), { lr: 0.125 })
  const generator = new Generator()
  expect(await loadCheckpoint(file, { model, optimizer, generator })).toEqual({ step: 2, extra: { epoch: 1 } })
  expect([optimizer.lr, generator.seed, generator.step]).toEqual([0.125, 8, 3])
  expect(numbersOf(model)[1]).toEqual(['bias', ...[-0.14938195049762726, -0.18044748902320862]])
  expect(numbersOf(optimizer)[3]).toEqual(['1.step', 2])
  expect(numbersOf(optimizer)[5]).toEqual(['1.exp_avg_sq', 0.017331548035144806, 0.006632375530898571])
})

describe('the state of an optimizer that cannot be', () => {
  const cases: [name: string, change: object, text: RegExp][] = [
    ...[Number.NaN, 2.5, -1, Infinity, 2 ** 53].map((count): [string, object, RegExp] => [
      `a step of ${count}`,
      { '1.step': tensor(Float64Array.of(count), []) },
      /1\.step must be an integer of at least 0, got/,
    ]),
    ['a step in f32', { '1.step': tensor([1], []) }, /1\.step must be f64, got f32/],
    ['two steps', { '1.step': tensor(Float64Array.of(1, 2)) }, /1\.step must be \[\], got \[2\]/],
    ['a moment that is not finite', { '1.exp_avg': tensor([1, Number.NaN]) }, /1\.exp_avg must hold finite numbers/],
    [
      'a negative square',
      { '1.exp_avg_sq': tensor([1, -1e-30]) },
      /1\.exp_avg_sq must hold finite numbers of at least 0/,
    ],
    ['an infinite square', { '1.exp_avg_sq': tensor([1, Infinity]) }, /1\.exp_avg_sq must hold finite/],
    ['another type', { '1.exp_avg': zeros([2], { dtype: 'f64' }) }, /1\.exp_avg must be f32, got f64/],
    ['another shape', { '1.exp_avg': zeros([3]) }, /1\.exp_avg must be \[2\], got \[3\]/],
  ]
  const file = join(folder, 'state.safetensors')

  test.each(cases)('%s', async (_, change, text) => {
    await trained(file)
    const error = { code: 'STATE_DICT', message: expect.stringMatching(text) }
    await expectUnchanged(async ({ optimizer }) => {
      optimizer.loadStateDict({ ...optimizer.stateDict(), ...change })
    }, error)
    const { tensors, metadata } = loadSafetensorsSync(file)
    const renamed = Object.fromEntries(Object.entries(change).map(([name, value]) => [`optimizer.${name}`, value]))
    await saveSafetensors(file, { ...tensors, ...renamed }, { metadata })
    await expectUnchanged((targets) => loadCheckpoint(file, targets), error)
  })

  test('is not saved either: the last good checkpoint stays', async () => {
    const { model, optimizer } = await trained(file)
    const before = readFileSync(file)
    model.weight.grad = full([2, 3], Infinity)
    optimizer.step()
    const tensors = memory().tensors
    await expect(saveCheckpoint(file, { model, optimizer, step: 2 })).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: expect.stringMatching(/the state of AdamW could not be loaded again:\n {2}0\.exp_avg must hold finite/),
    })
    expect(readFileSync(file).equals(before)).toBe(true)
    expect(memory().tensors).toBeLessThanOrEqual(tensors)
  })
})

test('a file that is no checkpoint is a FILE_FORMAT error', async () => {
  const model = new Net(3, 2)
  const file = join(folder, 'other.safetensors')
  const rejected = expect.objectContaining({ name: 'MoeError', code: 'FILE_FORMAT' })
  const abouts = [
    undefined,
    '',
    'null',
    '{}',
    '{"step":-1,"generator":{"seed":0,"step":0}}',
    '{"step":1,"generator":{"seed":-1,"step":0}}',
    '{"step":1,"generator":7}',
  ]
  for (const about of abouts) {
    const metadata = about === undefined ? undefined : { 'st-moe.checkpoint': about }
    await saveSafetensors(file, { 'model.weight': zeros([2, 3]), 'model.bias': zeros([2]) }, { metadata })
    await expect(loadCheckpoint(file, { model }), about).rejects.toEqual(rejected)
  }
  writeFileSync(file, 'garbage')
  await expect(loadCheckpoint(file, { model })).rejects.toEqual(rejected)
  await expect(loadCheckpoint(join(folder, 'none'), { model })).rejects.toMatchObject({
    code: 'FILE_SYSTEM',
    cause: { code: 'ENOENT' },
  })
})
