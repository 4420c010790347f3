// Not on the emulator: memory and errors of replays on the CPU; capture.test.ts has those of a GPU.
import { expect, test } from 'vitest'
import {
  AdamW,
  captureStep,
  Embedding,
  Linear,
  MoE,
  manualSeed,
  memory,
  mseLoss,
  randn,
  resetPeakMemory,
  SparseMoEBlock,
  scope,
  setNumThreads,
  tensor,
  zeros,
} from '../../lib/index.js'
import { own } from '../support/owned.js'

// What is particular to captured steps on the CPU, which are a list of ops.

const bits = (values: ArrayLike<number>): string => Buffer.from(Float32Array.from(values).buffer).toString('hex')

function training() {
  manualSeed(4)
  const block = own(new SparseMoEBlock(own(new MoE({ dim: 16, numExperts: 4 }))))
  const optimizer = own(new AdamW(block.parameters(), { lr: 1e-2 }))
  const x = own(randn([2, 64, 16]))
  const step = () => {
    optimizer.zeroGrad()
    const { outputs, totalAuxLoss } = block.forward(x)
    const loss = mseLoss(outputs, x).add(totalAuxLoss)
    loss.backward()
    optimizer.step()
    return { loss }
  }
  return { step, optimizer, x }
}

test('a replay needs no more memory than a call, and holds its results and the gradients between replays', () => {
  const peak = (work: () => void): number => {
    resetPeakMemory()
    const before = memory().bytes
    work()
    return memory().peakBytes - before
  }
  const { step, optimizer } = training()
  scope(step)
  optimizer.zeroGrad()
  const call = peak(() => scope(() => void step()))
  const captured = own(captureStep(step))
  captured.replay()
  const gradients = optimizer.parameters.reduce((sum, { grad }) => sum + 4 * grad!.size, 0)
  const held = memory().bytes
  expect(peak(() => void captured.replay())).toBeLessThanOrEqual(call)
  expect(memory().bytes).toBe(held)
  optimizer.zeroGrad()
  captured.dispose()
  expect(memory().bytes).toBe(held - gradients - 4)
})

test('an op that fails in a replay is named, and the next replay works', () => {
  const table = own(new Embedding(4, 3))
  const index = own(zeros([2], { dtype: 'i32' }))
  const run = () => {
    const made = index.to('f32').mul(2) // when the next op fails it is there
    return table.forward(index).square().sum().add(made.sum())
  }
  const step = own(captureStep(run))
  const bytes = memory().bytes
  const expected = () => scope(() => bits(run().dataSync()))
  index.copyFrom(Int32Array.of(1, 9))
  expect(() => step.replay()).toThrow(expect.objectContaining({ code: 'OPTION', op: 'embedding' }))
  expect(memory().bytes).toBe(bytes)
  index.copyFrom(Int32Array.of(1, 3))
  expect(bits(step.replay().dataSync())).toBe(expected())
})

test('the result of a step is the input of another', () => {
  const layer = own(new Linear(4, 4))
  const x = own(randn([3, 4]))
  const first = own(captureStep(() => layer.forward(x)))
  const y = first.replay()
  const second = own(captureStep(() => layer.forward(y)))
  for (const scale of [1, 2]) {
    scope(() => x.copyFrom(x.mul(scale)))
    first.replay()
    expect(bits(second.replay().dataSync())).toBe(scope(() => bits(layer.forward(layer.forward(x)).dataSync())))
  }
  first.dispose()
  expect(() => second.replay()).toThrow(/has been disposed, replaced or moved/)
})

test('replays with any number of threads return the same bits', () => {
  const losses = (threads: (i: number) => number) => {
    const captured = own(captureStep(training().step))
    return Array.from({ length: 4 }, (_, i) => {
      setNumThreads(threads(i))
      return captured.replay().loss.item()
    })
  }
  expect(losses((i) => i + 1)).toEqual(losses(() => 1))
})

test('a backward of what was recorded before a replay that changes its tensors is an error', () => {
  const w = own(tensor([1, 2], null, { requiresGrad: true }))
  const step = own(captureStep(() => void w.copyFrom(w.detach().mul(2))))
  const loss = own(w.mul(w).sum())
  step.replay()
  expect(() => loss.backward()).toThrow(/changed in place/)
})

test('a result that its owner disposed needs no memory after the next replay', () => {
  const x = own(tensor([1, 2, 3]))
  const step = own(captureStep(() => [x.mul(2), x.mul(3)]))
  const [twice, thrice] = step.replay()
  const bytes = memory().bytes
  twice.dispose()
  step.replay()
  expect(memory().bytes).toBe(bytes - 12)
  expect(Array.from(thrice.dataSync())).toEqual([3, 6, 9])
})
