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
import { runNode } from './support/child.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-checkpoint-'))
afterAll(() => rmSync(folder, { recursive: true }))

/**
 * Trains for some steps, from a checkpoint where there is one, and prints the loss of each step and a hash of all
 * parameters. The model draws random numbers in every step: batches, dropout, routing.
 * Arguments: steps, file to start from or '-', file to save to or '-', optimizer, threads.
 */
const program = `
  import { createHash } from 'node:crypto'
  const [, steps, from, to, kind, threads] = process.argv
  st.setNumThreads(Number(threads))
  st.manualSeed(31)
  class Model extends st.Module {
    embed = new st.Embedding(17, 12)
    drop = new st.Dropout(0.2)
    attend = new st.CausalSelfAttention(12, { heads: 3 })
    block = new st.SparseMoEBlock(new st.MoE({ dim: 12, numExperts: 5, noiseGates: true }), { addFfBefore: true })
    head = new st.Linear(12, 17)
    forward(tokens) {
      const x = this.drop.forward(this.embed.forward(tokens))
      const { outputs, totalAuxLoss } = this.block.forward(x.add(this.attend.forward(x)))
      return [this.head.forward(outputs), totalAuxLoss]
    }
  }
  const model = new Model()
  const optimizer = kind === 'AdamW'
    ? new st.AdamW(model.parameters(), { lr: 1e-2 })
    : new st.SGD(model.parameters(), { lr: 0.1, momentum: 0.9, weightDecay: 1e-3 })
  let { step, extra } = from === '-' ? { step: 0, extra: { position: 5 } } : await st.loadCheckpoint(from, { model, optimizer })
  let { position } = extra
  for (const end = step + Number(steps); step < end; step++) {
    const loss = st.scope(() => {
      const tokens = st.tensor(Int32Array.from({ length: 24 }, (_, i) => (position + i * i) % 17), [2, 12])
      const [logits, aux] = model.forward(tokens)
      const loss = st.crossEntropy(logits, tokens).add(aux)
      optimizer.zeroGrad()
      loss.backward()
      st.clipGradNorm(model.parameters(), 1)
      optimizer.step()
      return loss.item()
    })
    position += 3
    console.log(step, loss)
  }
  if (to !== '-') await st.saveCheckpoint(to, { model, optimizer, step, extra: { position } })
  const hash = createHash('sha256')
  for (const entry of Object.values(model.stateDict())) hash.update(entry.dataSync())
  console.log(hash.digest('hex'))
`

const train = async (...args: (string | number)[]) => (await runNode(program, args.map(String))).trim().split('\n')

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
  await expect(loadCheckpoint(join(folder, 'none'), { model })).rejects.toMatchObject({ code: 'ENOENT' })
})
