import { getEventListeners } from 'node:events'
import { describe, expect, test } from 'vitest'
import {
  captureStep,
  defaultGenerator,
  Embedding,
  Linear,
  Module,
  memory,
  ones,
  rand,
  type Tensor,
  tensor,
  trainStepAsync,
} from '../../lib/index.js'

// What an asynchronous call hands on, and what it leaves.

/** Says what its forward was called with. */
class Listener extends Module {
  readonly calls: unknown[][] = []

  forward(...inputs: unknown[]): Tensor {
    this.calls.push(inputs)
    return ones([1])
  }
}

test('a signal is the call’s, not the module’s', async () => {
  const listener = new Listener()
  const { signal } = new AbortController()
  const forward = listener.forwardAsync as unknown as (...inputs: unknown[]) => Promise<Tensor>
  for (const inputs of [[{ signal }], [7, { signal }], [7, { signal, other: 1 }]])
    (await forward.apply(listener, inputs)).dispose()
  expect(listener.calls).toEqual([[], [7], [7, { other: 1 }]])
})

test('a signal of many calls has no listeners of those that have ended', async () => {
  const { signal } = new AbortController()
  const layer = new Linear(2, 2)
  const x = ones([1, 2])
  for (let i = 0; i < 4; i++) (await layer.forwardAsync(x, { signal } as never)).dispose()
  await trainStepAsync(() => {}, { signal })
  await expect(
    trainStepAsync(
      () => {
        throw new Error('mine')
      },
      { signal },
    ),
  ).rejects.toThrow('mine')
  expect(getEventListeners(signal, 'abort')).toEqual([])
  for (const owned of [layer, x]) owned.dispose()
})

describe('dataAsync', () => {
  test('rejects after an abort, even if the values are there', async () => {
    const x = tensor([1, 2])
    await expect(x.dataAsync({ signal: AbortSignal.abort(new Error('enough')) })).rejects.toThrow('enough')
    x.dispose()
  })

  test('holds no tensor when it has ended', async () => {
    const before = memory().tensors
    const x = tensor([1, 2])
    expect([...(await x.dataAsync())]).toEqual([1, 2])
    x.dispose()
    expect(memory().tensors).toBe(before)
  })

  test('is refused in a captured step', async () => {
    const x = ones([2])
    let reading: Promise<unknown> = Promise.resolve()
    const step = captureStep(() => {
      reading = x.dataAsync().catch((error) => error)
      return x.mul(2)
    })
    expect(await reading).toMatchObject({ code: 'UNSUPPORTED', op: 'Tensor.dataAsync' })
    for (const owned of [step, x]) owned.dispose()
  })
})

// A GPU reports such an index when the step has been taken.
test('a step that fails while the CPU computes it has used no random numbers', async () => {
  const device = 'cpu'
  const table = new Embedding(4, 2, { device })
  const index = tensor(Int32Array.of(1, 9), null, { device })
  const before = defaultGenerator.step
  const step = trainStepAsync(() => {
    rand([3], { device })
    return table.forward(index)
  })
  await expect(step).rejects.toMatchObject({ code: 'OPTION' })
  expect(defaultGenerator.step).toBe(before)
  for (const owned of [table, index]) owned.dispose()
})
