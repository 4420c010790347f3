// Not on the emulator: memory of the host.
import { join } from 'node:path'
import { expect, test } from 'vitest'
import {
  AdamW,
  EMA,
  Linear,
  loadCheckpoint,
  loadSafetensorsSync,
  type Module,
  memory,
  resetPeakMemory,
  type StateDict,
  saveCheckpoint,
  saveSafetensors,
  saveSafetensorsSync,
  scope,
  type Tensor,
} from '../../lib/index.js'
import { own } from '../support/owned.js'
import { temporary } from '../support/temporary.js'

// What saves and loads hold in memory besides the state, and that a save is of the moment of its call.

const folder = temporary()
const bits = (x: Tensor): string => Buffer.from(x.dataSync().buffer).toString('hex')
const values = (module: Module): string[] => scope(() => Object.values(module.stateDict()).map(bits))

/** The bytes that `work` needs at its peak, beyond those of before. */
function peak(work: () => void): number {
  resetPeakMemory()
  const before = memory().bytes
  work()
  return memory().peakBytes - before
}

test('a state in the dtype of the module is loaded without a copy', () => {
  const [layer, other] = [own(new Linear(64, 64)), own(new Linear(64, 64))]
  const bytes = 4 * (64 * 64 + 64)
  scope(() => {
    const state = other.stateDict()
    expect(peak(() => void layer.loadStateDict(state))).toBe(0)
    expect(values(layer)).toEqual(values(other))
    const wide = Object.fromEntries(Object.entries(state).map(([name, value]) => [name, value.to('f64')]))
    expect(peak(() => void layer.loadStateDict(wide))).toBe(bytes)
  })
  const ema = own(new EMA(layer, { decay: 0.5 }))
  scope(() => {
    const state = ema.stateDict()
    expect(peak(() => ema.loadStateDict(state))).toBe(0)
  })
})

test('a checkpoint is loaded with one copy of the model', async () => {
  const model = own(new Linear(256, 256))
  const bytes = 4 * (256 * 256 + 256)
  const path = join(folder, 'model.safetensors')
  await saveCheckpoint(path, { model, step: 1 })
  resetPeakMemory()
  const before = memory().bytes
  await loadCheckpoint(path, { model })
  expect(memory().peakBytes - before).toBe(bytes)
  expect(memory().bytes).toBe(before)
})

test('a state of tensors of the module itself, exchanged, and of views', () => {
  class Two extends Linear {
    readonly other = own(new Linear(3, 3, { bias: false }))
  }
  const both = own(new Two(3, 3, { bias: false }))
  const [a, b] = [bits(both.weight), bits(both.other.weight)]
  both.loadStateDict({ weight: both.other.weight, 'other.weight': both.weight })
  expect([bits(both.weight), bits(both.other.weight)]).toEqual([b, a])
  scope(() => {
    const views = { weight: both.other.weight.reshape([9]).reshape([3, 3]), 'other.weight': both.weight.detach() }
    both.loadStateDict(views)
  })
  expect([bits(both.weight), bits(both.other.weight)]).toEqual([a, b])
})

const save: [string, (path: string, model: Module, state: StateDict) => Promise<void> | void][] = [
  ['saveSafetensorsSync', (path, _, state) => saveSafetensorsSync(path, state)],
  ['saveSafetensors', (path, _, state) => saveSafetensors(path, state)],
  ['saveCheckpoint', (path, model) => saveCheckpoint(path, { model, step: 1 })],
]

test.each(save)('%s writes the values of its call', async (name, write) => {
  const model = own(new Linear(32, 32))
  const optimizer = own(new AdamW(model.parameters(), { lr: 1 }))
  const state = Object.fromEntries([...model.namedParameters()])
  const before = values(model)
  const path = join(folder, `${name}.safetensors`)
  const saved = write(path, model, state)
  scope(() => {
    for (const parameter of model.parameters()) parameter.sum().backward()
    optimizer.step()
  })
  await saved
  expect(values(model)).not.toEqual(before)
  const { tensors } = loadSafetensorsSync(path)
  const prefix = name === 'saveCheckpoint' ? 'model.' : ''
  expect(['weight', 'bias'].map((each) => bits(own(tensors[prefix + each])))).toEqual(before)
})

test('saves leave no tensors', async () => {
  const model = own(new Linear(4, 4))
  const { tensors, bytes } = memory()
  await saveCheckpoint(join(folder, 'left.safetensors'), { model, step: 1 })
  await expect(saveCheckpoint(join(folder, 'none/left.safetensors'), { model, step: 1 })).rejects.toThrow(
    /FILE_SYSTEM|ENOENT/,
  )
  expect(memory()).toMatchObject({ tensors, bytes })
})
