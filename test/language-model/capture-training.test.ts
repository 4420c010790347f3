import { expect, test, vi } from 'vitest'
import { CharacterTokenizer, LanguageModel } from '../../language-model/index.js'
import { makeOptimizer, TrainStep } from '../../language-model/train-step.js'
import {
  AdamW,
  type Device,
  full,
  getNumThreads,
  MoEMonitor,
  manualSeed,
  scope,
  setDefaultDevice,
} from '../../lib/index.js'
import { native } from '../../lib/runtime/native.js'
import { useEmulator } from '../support/emulator.js'

// st-moe train on a GPU, which is the emulator (npm run build:simt) unless ST_MOE_CUDA_LIBRARY names another plugin.

const built = useEmulator()

test('the optimizer of the trainer', () => {
  using model = new LanguageModel({ tokenizer: new CharacterTokenizer(['a']), context: 4, dim: 4, layers: 1, heads: 1 })
  using optimizer = makeOptimizer(model, 4e-3)
  expect(optimizer).toBeInstanceOf(AdamW)
  expect(optimizer).toMatchObject({ lr: 4e-3, betas: [0.9, 0.98], weightDecay: 0.1 })
})

test.skipIf(!built)('a training step of the language model is one replay, with the losses of the CPU', () => {
  const options = {
    tokenizer: new CharacterTokenizer([...'abcdefg']),
    context: 8,
    dim: 16,
    layers: 2,
    heads: 2,
    experts: 4,
    topN: 2,
  }
  const batchOf = (i: number) => {
    const input = Int32Array.from({ length: 16 }, (_, j) => (i * 5 + j * j) % 7)
    return { input, target: input.map((c) => (c + 1) % 7) }
  }
  const losses = (device: Device) => {
    setDefaultDevice(device)
    try {
      manualSeed(2)
      using model = new LanguageModel(options)
      using optimizer = makeOptimizer(model, 1e-2)
      using monitor = new MoEMonitor(model)
      using trainStep = new TrainStep(model, optimizer)
      const found = [0, 1, 2, 3].map((i) => trainStep.run(batchOf(i)))
      expect(monitor.report().map(({ forwards }) => forwards)).toEqual([4, 4])
      expect(() => {
        scope(() => model.head.weight.copyFrom(full(model.head.weight.shape, Number.NaN)))
        trainStep.run(batchOf(4))
      }).toThrow(/\[clipGradNorm\] the gradient norm must be finite, got NaN/)
      return found
    } finally {
      setDefaultDevice('cpu')
    }
  }
  getNumThreads() // loads the addon
  const replays = vi.spyOn(native, 'replay')
  const onGpu = losses('cuda')
  expect(replays).toHaveBeenCalledTimes(5)
  replays.mockRestore()
  expect(onGpu).toEqual(losses('cpu').map((loss) => expect.closeTo(loss, 4)))
})
