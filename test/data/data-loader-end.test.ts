import { setImmediate } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { DataLoader, tensor } from '../../lib/index.js'
import { live } from '../support/baseline.js'

// What a loop over a DataLoader leaves when it ends before its source has answered.

async function batchesOf<B>(loader: Iterable<B> | AsyncIterable<B>, most = Infinity): Promise<B[]> {
  const all: B[] = []
  for await (const batch of loader) {
    all.push(batch)
    if (all.length === most) break
  }
  return all
}
const thrown = () => {
  throw new Error('mine')
}

test('a loop that ends does not wait for an example, whose batch is freed when it comes', async () => {
  const before = live()
  let come = (_: number): void => {}
  const late = new Promise<number>((resolve) => {
    come = resolve
  })
  const asked: number[] = []
  const get = (i: number) => {
    asked.push(i)
    return i === 1 ? late : i
  }
  const loader = new DataLoader({ length: 4, get }, { batchSize: 1, collate: (rows) => tensor(rows) })
  expect((await batchesOf(loader, 1)).length).toBe(1)
  expect(live()).toEqual(before)
  come(1)
  await setImmediate()
  expect(live()).toEqual(before)
  expect(asked).toEqual([0, 1])
  expect((await batchesOf(loader)).length).toBe(3)
})

test.each([false, true])(
  'a loop that ends does not wait for a stream, which it ends (shuffle: %s)',
  async (shuffle) => {
    let [ended, isStuck, come] = [0, false, () => {}]
    const stuck = new Promise<void>((resolve) => {
      come = resolve
    })
    const slow = async function* () {
      try {
        yield* [1, 2]
        isStuck = true
        await stuck
        yield 3
      } finally {
        ended++
        if (ended > 0) thrown()
      }
    }
    const loader = new DataLoader<number>(slow, { batchSize: 1, shuffle, window: 2 })
    const batches: number[] = []
    for await (const batch of loader) {
      batches.push(...batch)
      if (batches.length < 2) continue
      await expect.poll(() => isStuck).toBe(true) // the next batch has been asked for
      break
    }
    expect(batches.toSorted()).toEqual([1, 2])
    expect([loader.batch, ended]).toEqual([2, 0])
    come()
    await expect.poll(() => ended).toBe(1)
  },
)

test('errors of a stream are those of the loop', async () => {
  const broken = async function* () {
    yield 1
    thrown()
  }
  await expect(batchesOf(new DataLoader<number>(broken, { batchSize: 1 }))).rejects.toThrow('mine')
})

test('a dataset without examples has no batches', async () => {
  const none = new DataLoader({ length: 0, get: thrown }, { batchSize: 2 })
  expect(none.batches).toBe(0)
  expect(await batchesOf(none)).toEqual([])
  expect(none.epoch).toBe(1)
})
