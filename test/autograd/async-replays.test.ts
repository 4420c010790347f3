// Not on the emulator: replays of the CPU; capture.test.ts has what a GPU answers.
import { setImmediate as nextTurn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import {
  AdamW,
  captureStep,
  defaultGenerator,
  dropout,
  EMA,
  Embedding,
  Linear,
  Module,
  MoE,
  manualSeed,
  memory,
  mseLoss,
  ones,
  randn,
  resetPeakMemory,
  SGD,
  scope,
  type Tensor,
  tensor,
  trainStepAsync,
  zeros,
} from '../../lib/index.js'
import { sanitized } from '../support/child.js'
import { own } from '../support/owned.js'

// Replays of captured steps in asynchronous calls: the numbers of replays outside, and what a call leaves that fails.

const bits = (x: Tensor): string => Buffer.from(x.dataSync().buffer).toString('hex')

function training() {
  manualSeed(4)
  const moe = own(new MoE({ dim: 16, numExperts: 4, noiseGates: true }))
  const optimizer = own(new AdamW(moe.parameters(), { lr: 1e-2 }))
  const ema = own(new EMA(moe, { decay: 0.9 }))
  const x = own(randn([2, 24, 16]))
  const step = own(
    captureStep(() => {
      optimizer.zeroGrad()
      const { outputs, totalAuxLoss } = moe.forward(dropout(x, 0.1))
      const loss = mseLoss(outputs, x).add(totalAuxLoss)
      loss.backward()
      optimizer.step()
      ema.update()
      return loss
    }),
  )
  const state = () =>
    scope(() => [...Object.values(optimizer.stateDict()), ...Object.values(moe.stateDict())].map(bits))
  return { step, optimizer, x, state }
}

test('replays in calls, one or two each, return the bits of replays outside', async () => {
  const outside = training()
  const expected = Array.from({ length: 4 }, () => bits(outside.step.replay()))
  const left = [outside.state(), defaultGenerator.step]

  const { step, state } = training()
  const losses: string[] = []
  losses.push(bits(await trainStepAsync(() => step.replay())))
  const [, second] = await trainStepAsync(() => {
    const first = step.replay().clone() // the next replay writes the result anew
    return [step.replay(), first].map((loss) => loss.clone())
  })
  losses.push(bits(second))
  losses.push(bits(step.replay())) // it is still of the second
  expect(losses).toEqual([expected[0], expected[1], expected[3]])
  expect([state(), defaultGenerator.step]).toEqual(left)
  second.dispose()
})

test('a call may write the inputs before it, and compute with the result', async () => {
  const x = own(zeros([2]))
  const step = own(captureStep(() => x.square()))
  const sums = await trainStepAsync(() =>
    [1, 3].map((value) => {
      x.copyFrom([value, 2 * value])
      return step.replay().sum()
    }),
  )
  expect(sums.map((sum) => sum.item())).toEqual([5, 45])
  for (const sum of sums) sum.dispose()
})

test('forwardAsync replays', async () => {
  const x = own(tensor([1, 2, 3]))
  const step = own(captureStep(() => x.mul(2)))
  class Doubling extends Module {
    forward(): Tensor {
      return step.replay()
    }
  }
  const y = await own(new Doubling()).forwardAsync()
  expect([...y.dataSync()]).toEqual([2, 4, 6])
  expect(y).toBe(step.replay())
})

test('a replay in a call needs no more memory than one outside', async () => {
  const { step } = training()
  const peak = async (work: () => unknown) => {
    resetPeakMemory()
    const before = memory().bytes
    await work()
    return [memory().peakBytes - before, memory().bytes - before]
  }
  step.replay()
  const [outside] = await peak(() => step.replay())
  expect(await peak(() => trainStepAsync(() => step.replay()))).toEqual([outside, 0])
  expect((await peak(() => trainStepAsync(() => step.replay())))[1]).toBe(0)
})

/** A step whose last op fails if `index` is out of range. */
function failing() {
  manualSeed(7)
  const layer = own(new Linear(3, 3))
  const table = own(new Embedding(4, 3))
  const optimizer = own(new SGD(layer.parameters(), { lr: 0.1, momentum: 0.9 }))
  const index = own(zeros([2], { dtype: 'i32' }))
  const x = own(randn([2, 3]))
  const step = own(
    captureStep(() => {
      optimizer.zeroGrad()
      layer.forward(dropout(x, 0.5)).square().sum().backward()
      optimizer.step()
      return layer.forward(table.forward(index))
    }),
  )
  const state = () =>
    scope(() =>
      JSON.stringify(
        [...Object.entries(optimizer.stateDict()), ...Object.entries(layer.stateDict())].map(([name, value]) => [
          name,
          bits(value),
        ]),
      ),
    )
  return { step, index, state }
}

test('a call that fails restores parameters, the optimizer and the default generator', async () => {
  const { step, index, state } = failing()
  step.replay()
  const before = [state(), defaultGenerator.step]
  index.copyFrom(Int32Array.of(1, 9))
  const call = () =>
    trainStepAsync(() => {
      ones([2]) // another op
      dropout(ones([2]), 0.5) // a sample before that of the replay
      return step.replay()
    })
  await expect(call()).rejects.toThrow(expect.objectContaining({ code: 'OPTION', op: 'embedding' }))
  expect([state(), defaultGenerator.step]).toEqual(before)
  index.copyFrom(Int32Array.of(1, 3))
  const after = bits(await trainStepAsync(() => step.replay()))

  const other = failing()
  other.step.replay()
  other.index.copyFrom(Int32Array.of(1, 3))
  expect(bits(other.step.replay())).toBe(after)
  expect(other.state()).toBe(state())
})

test('in a call that fails after a replay it is undone, too, and its memory is freed', async () => {
  const { step, index, state } = failing()
  index.copyFrom(Int32Array.of(0, 3))
  step.replay()
  const wrong = own(tensor([5], null, { dtype: 'i32' }))
  const small = own(new Embedding(2, 3))
  const before = [state(), defaultGenerator.step]
  const { bytes, tensors } = memory()
  await expect(
    trainStepAsync(() => {
      step.replay()
      step.replay()
      return small.forward(wrong)
    }),
  ).rejects.toThrow(expect.objectContaining({ op: 'embedding' }))
  expect([state(), defaultGenerator.step]).toEqual(before)
  expect(memory()).toMatchObject({ bytes, tensors })
})

test('JavaScript that fails after a replay undoes it', async () => {
  const { step, state } = failing()
  step.replay()
  const before = [state(), defaultGenerator.step]
  await expect(
    trainStepAsync(() => {
      step.replay()
      throw new Error('mine')
    }),
  ).rejects.toThrow('mine')
  expect([state(), defaultGenerator.step]).toEqual(before)
})

test('an abort stops within a replay, and undoes it', async () => {
  const x = own(randn([500, 500]))
  const count = own(zeros([1]))
  const step = own(
    captureStep(() => {
      count.copyFrom(count.add(1))
      return Array.from({ length: sanitized ? 30 : 300 }).reduce<Tensor>((y) => y.matmul(x), x)
    }),
  )
  let begun = false
  class Counting extends Module {
    forward(): Tensor {
      begun = true
      return step.replay()
    }
  }
  const counting = own(new Counting())
  const { bytes, tensors } = memory()
  const abort = new AbortController()
  const forward = counting.forwardAsync({ signal: abort.signal } as never)
  while (!begun) await nextTurn()
  abort.abort(new Error('enough'))
  await expect(forward).rejects.toThrow('enough')
  expect(count.item()).toBe(0)
  expect(memory()).toMatchObject({ bytes, tensors })
  await counting.forwardAsync()
  expect(count.item()).toBe(1)
})

test('a step, its results and its inputs may be disposed while a call replays it', async () => {
  const { bytes } = memory()
  const x = randn([300, 300])
  const step = captureStep(() => [x.matmul(x).matmul(x), x.square()])
  const results = step.replay()
  const expected = bits(results[0])
  let began = () => {}
  const running = new Promise<void>((resolve) => {
    began = resolve
  })
  const call = trainStepAsync(() => {
    began()
    return step.replay()[0].mul(1)
  })
  await running
  for (const result of results) result.dispose()
  x.dispose()
  step.dispose()
  const product = await call
  expect(bits(product)).toBe(expected)
  product.dispose()
  expect(memory().bytes).toBe(bytes)
})

test('a backward of what the call computed before a replay that changes its tensors is an error', async () => {
  const w = own(tensor([1, 2], null, { requiresGrad: true }))
  const step = own(captureStep(() => void w.copyFrom(w.detach().mul(2))))
  await expect(
    trainStepAsync(() => {
      const loss = w.mul(w).sum()
      step.replay()
      loss.backward()
    }),
  ).rejects.toThrow(/changed in place/)
  expect([...w.dataSync()]).toEqual([1, 2])
})

test('a disposed tensor, and what the step decides by values, are errors that change nothing', async () => {
  const { step } = failing()
  const x = own(ones([2]))
  const gone = own(captureStep(() => x.mul(2)))
  x.dispose()
  const samples = defaultGenerator.step
  const replayed = await trainStepAsync(() => {
    expect(() => gone.replay()).toThrow(/has been disposed, replaced or moved; capture the step again/)
    return step.replay()
  })
  expect(replayed.shape).toEqual([2, 3])
  expect(defaultGenerator.step).toBe(samples + 1)

  const layer = own(new Linear(2, 2))
  const optimizer = own(new SGD(layer.parameters(), { lr: 0.1 }))
  const deciding = own(
    captureStep(() => {
      optimizer.zeroGrad()
      layer
        .forward(ones([1, 2]))
        .sum()
        .backward()
      optimizer.step({ onNonFinite: 'skip' })
    }),
  )
  const refusal = { code: 'UNSUPPORTED', op: 'CapturedStep.replay' }
  await expect(trainStepAsync(() => deciding.replay())).rejects.toThrow(expect.objectContaining(refusal))
  deciding.replay()
  await expect(trainStepAsync(() => deciding.dispose())).rejects.toMatchObject({ code: 'UNSUPPORTED' })
  expect(deciding.disposed).toBe(false)
  deciding.replay()
})
