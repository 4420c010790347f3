import { setImmediate as nextTurn } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { Linear, memory, randn, type Tensor, trainStepAsync, zeros } from '../../lib/index.js'
import { large } from '../support/large.js'

// Asynchronous calls that a signal stops.

describe('abort', () => {
  const reason = new Error('stop')

  test('keeps a call that has not begun from beginning, at once', async () => {
    const abort = new AbortController()
    const first = trainStepAsync(large)
    let called = false
    const second = trainStepAsync(
      () => {
        called = true
      },
      { signal: abort.signal },
    )
    abort.abort(reason)
    await expect(second).rejects.toBe(reason)
    ;(await first).dispose()
    await expect(trainStepAsync(() => 1, { signal: abort.signal })).rejects.toBe(reason)
    expect(await trainStepAsync(() => 2)).toBe(2)
    expect(called).toBe(false)
  })

  test('interrupts a forward, and lets a step end', async () => {
    const layer = new Linear(700, 700)
    const x = randn([700, 700])
    let begun = false
    const deep = Object.assign(layer, {
      forward: (input: Tensor) => {
        begun = true
        count.copyFrom([1])
        return Array.from({ length: 200 }).reduce<Tensor>((y) => y.matmul(x), input)
      },
    })
    const count = zeros([1])
    const before = memory()
    const abort = new AbortController()
    const forward = deep.forwardAsync(x, { signal: abort.signal })
    while (!begun) await nextTurn()
    const queued = x.dataAsync({ signal: abort.signal })
    abort.abort(reason)
    for (const ended of await Promise.allSettled([forward, queued])) expect(ended).toMatchObject({ reason })
    expect(memory()).toMatchObject({ tensors: before.tensors, bytes: before.bytes })
    expect(count.item()).toBe(0)

    const later = new AbortController()
    begun = false
    const step = trainStepAsync(
      () => {
        begun = true
        return large().sum()
      },
      { signal: later.signal },
    )
    while (!begun) await nextTurn()
    later.abort(reason)
    ;(await step).dispose()
    for (const owned of [layer, x, count]) owned.dispose()
  })
})
