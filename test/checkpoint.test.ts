import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import {
  AdamW,
  Generator,
  Linear,
  loadCheckpoint,
  type Module,
  randn,
  SGD,
  saveCheckpoint,
  saveSafetensors,
  scope,
  zeros,
} from '../lib/index.js'
import { runChild } from './support/child.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-checkpoint-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** Lines that a training in a process of its own prints: the loss of each step, and a hash of all parameters. */
async function train(...args: (string | number)[]): Promise<string[]> {
  const { code, stdout, stderr } = await runChild('resumable-run.mjs', args.map(String))
  expect([code, stderr]).toEqual([0, ''])
  return stdout.trim().split('\n')
}

test.each(['AdamW', 'SGD'])(
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

const numbersOf = (module: Module) => Object.values(module.stateDict()).map((t) => Array.from(t.dataSync()))

async function trained(file: string) {
  const model = new Net(3, 2)
  const optimizer = new AdamW(model.parameters())
  scope(() =>
    model
      .forward(randn([4, 3]))
      .square()
      .sum()
      .backward(),
  )
  optimizer.step()
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
