import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { afterAll, describe, expect, test } from 'vitest'
import {
  DataLoader,
  type DataLoaderOptions,
  keep,
  Linear,
  loadCheckpoint,
  memory,
  randn,
  saveCheckpoint,
  scope,
  type Tensor,
  tensor,
  tensorDataset,
} from '../../lib/index.js'
import { live, values } from '../support/baseline.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-loader-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const numbers = (n: number) => Array.from({ length: n }, (_, i) => i)
const stream = (n: number) =>
  async function* () {
    for (const i of numbers(n)) {
      await setImmediate()
      yield i
    }
  }

const thrown = () => {
  throw new Error('mine')
}
/** An example that takes a while. */
async function late(i: number): Promise<Tensor> {
  for (let waits = 0; waits < 5; waits++) await setImmediate()
  return tensor([i])
}

async function epochOf<T, B>(loader: DataLoader<T, B>, most = Infinity): Promise<B[]> {
  const all: B[] = []
  for await (const batch of loader) {
    all.push(batch)
    if (all.length === most) break
  }
  return all
}

type Make = (options: DataLoaderOptions<number, number[]>) => DataLoader<number>
const sources: Record<string, Make> = {
  array: (options) => new DataLoader(numbers(23), options),
  dataset: (options) => new DataLoader({ length: 23, get: (i: number) => i }, options),
  'async dataset': (options) => new DataLoader({ length: 23, get: async (i: number) => i }, options),
  stream: (options) => new DataLoader<number>(stream(23), options),
}

describe.each(Object.entries(sources))('of an %s', (_, make) => {
  test('every example once an epoch, in order or in another order each epoch', async () => {
    const ordered = make({ batchSize: 5 })
    expect((await epochOf(ordered)).map((batch) => batch.length)).toEqual([5, 5, 5, 5, 3])
    expect((await epochOf(ordered)).flat()).toEqual(numbers(23))
    const shuffled = make({ batchSize: 5, shuffle: true })
    const [first, second] = [(await epochOf(shuffled)).flat(), (await epochOf(shuffled)).flat()]
    for (const epoch of [first, second]) {
      expect(epoch).not.toEqual(numbers(23))
      expect(epoch.toSorted((a, b) => a - b)).toEqual(numbers(23))
    }
    expect(second).not.toEqual(first)
    expect((await epochOf(make({ batchSize: 5, shuffle: true }))).flat()).toEqual(first)
    expect((await epochOf(make({ batchSize: 5, shuffle: true, seed: 1 }))).flat()).not.toEqual(first)
  })

  test('without a last batch that is not full', async () => {
    const loader = make({ batchSize: 5, dropLast: true })
    expect((await epochOf(loader)).map((batch) => batch.length)).toEqual([5, 5, 5, 5])
    expect([loader.epoch, loader.batch]).toEqual([1, 0])
    expect((await epochOf(make({ batchSize: 24, dropLast: true }))).length).toBe(0)
  })

  test.each([0, 1, 7])('resumes at every batch, with %i batches ahead', async (prefetch) => {
    const options = { batchSize: 4, shuffle: true, seed: 3, window: 10, prefetch }
    const whole = make(options)
    const all = [...(await epochOf(whole)), ...(await epochOf(whole))]
    for (let stop = 0; stop < all.length; stop++) {
      const before = make(options)
      const got: number[][] = []
      while (got.length < stop) got.push(...(await epochOf(before, stop - got.length)))
      const after = make({ ...options, seed: 9, prefetch: 2 })
      after.setState(JSON.parse(JSON.stringify(before)))
      expect([after.epoch, after.batch]).toEqual([before.epoch, before.batch])
      while (got.length < all.length) got.push(...(await epochOf(after)))
      expect(got).toEqual(all)
    }
  })
})

test('no window of a stream has the order of another window or epoch', async () => {
  const window = 32
  const loader = new DataLoader<number>(stream(3 * window), { batchSize: window, shuffle: true, window })
  const orders = [...(await epochOf(loader)), ...(await epochOf(loader))].map((batch) =>
    batch.map((i) => i % window).join(),
  )
  expect(new Set(orders).size).toBe(6)
})

test('a loop that ends early goes on where it was; for and for await give the same', async () => {
  const loader = new DataLoader(numbers(10), { batchSize: 3, shuffle: true })
  const all = [...loader]
  loader.moveTo(0)
  for (const batch of loader) {
    expect(batch).toEqual(all[0])
    break
  }
  expect(await epochOf(loader)).toEqual(all.slice(1))
  loader.moveTo(0, 2)
  expect([...loader]).toEqual(all.slice(2))
})

test('batches are made ahead, and no more than asked for', async () => {
  const made: number[] = []
  const source = { length: 100, get: async (i: number) => made.push(i) }
  const loader = new DataLoader(source, { batchSize: 1, prefetch: 3 })
  for await (const _ of loader) {
    for (let i = 0; i < 50; i++) await setImmediate()
    expect(made.length).toBe(4 + loader.batch - 1)
    if (loader.batch === 5) break
  }
})

describe('tensors', () => {
  const x = () => tensor(Float32Array.from(numbers(20)), [10, 2])

  test('rows of each, of any dtype', () => {
    using inputs = x()
    using targets = tensor(Int32Array.from(numbers(10)), [10])
    const loader = new DataLoader(tensorDataset(inputs, targets), { batchSize: 4, shuffle: true })
    const seen: number[] = []
    for (const [rows, classes] of loader) {
      expect(rows.shape.slice(1)).toEqual([2])
      const at = values(classes)
      expect(values(rows)).toEqual(at.flatMap((i) => [2 * i, 2 * i + 1]))
      seen.push(...at)
    }
    expect(seen.toSorted((a, b) => a - b)).toEqual(numbers(10))
  })

  test('that require gradients are taken as numbers', () => {
    using inputs = tensor([[1], [2], [3]], null, { requiresGrad: true })
    for (const [rows] of new DataLoader(tensorDataset(inputs), { batchSize: 2 })) expect(rows.requiresGrad).toBe(false)
  })

  test('of a batch live until the next one, however the loop ends', async () => {
    using inputs = x()
    const before = live()
    const whole = new DataLoader(tensorDataset(inputs), { batchSize: 2 })
    let last: Tensor | null = null
    for (const [rows] of whole) {
      expect(last?.disposed ?? true).toBe(true)
      last = rows
    }
    for await (const [rows] of whole) {
      expect(rows.disposed).toBe(false)
      if (whole.batch === 2) break
    }
    await expect(async () => {
      for await (const _ of whole) throw new Error('of the body')
    }).rejects.toThrow('of the body')
    expect(live()).toEqual(before)
  })

  test('that collate makes are freed, those of the examples are not', async () => {
    using a = tensor([1, 2])
    using b = tensor([3, 4])
    const before = live()
    const loader = new DataLoader([a, b], {
      batchSize: 2,
      collate: async ([first, second]) => ({ first, sum: first.add(second) }),
    })
    for await (const { first, sum } of loader) {
      expect(first).toBe(a)
      expect(values(sum)).toEqual([4, 6])
    }
    expect(a.disposed).toBe(false)
    expect(live()).toEqual(before)
  })

  describe('that are not in the batch are freed', () => {
    const half = (rows: Tensor) => ({ x: rows.slice(1, 0, 1), y: rows.slice(1, 1, 2) })
    const made: Record<string, () => DataLoader<unknown, unknown>> = {
      'of collate': () => new DataLoader([[1, 2]], { batchSize: 1, collate: (rows) => half(tensor(rows)) }),
      'of an async collate': () =>
        new DataLoader([[1, 2]], {
          batchSize: 1,
          collate: async (rows) => {
            const all = tensor(rows)
            await setImmediate()
            return half(all)
          },
        }),
      'of get': () =>
        new DataLoader({ length: 2, get: async (i) => tensor([[i, i]]) }, { batchSize: 2, collate: ([a]) => half(a) }),
      'of batch': () => new DataLoader({ length: 2, batch: () => half(tensor([[1, 2]])) }, { batchSize: 2 }),
      'of a collate that throws': () =>
        new DataLoader([[1, 2]], {
          batchSize: 1,
          collate: (rows) => {
            throw new Error(`from collate, ${tensor(rows).size}`)
          },
        }),
      'of a dataset that cannot give the rest': () => {
        const [x, gone] = [tensor([1, 2]), tensor([1, 2])]
        const rows = tensorDataset(x, gone)
        const batch = () => {
          gone.dispose()
          try {
            return rows.batch(Int32Array.of(0))
          } finally {
            x.dispose()
          }
        }
        return new DataLoader({ length: 1, batch }, { batchSize: 1 })
      },
    }
    test.each(Object.entries(made))('%s', async (name, make) => {
      const before = live()
      const errors: unknown[] = []
      const loader = make()
      try {
        for await (const _ of loader) expect(live().tensors).toBe(before.tensors + 2)
      } catch (error) {
        errors.push(error)
      }
      expect(errors.map(String)).toEqual(
        name.includes('throws') ? ['Error: from collate, 2'] : name.includes('cannot') ? [expect.any(String)] : [],
      )
      expect(live()).toEqual(before)
    })
  })

  test.each<[string, (i: number) => Tensor | Promise<Tensor>, boolean]>([
    ['of examples beside one that fails', (i) => (i === 0 ? Promise.reject(new Error('mine')) : late(i)), true],
    ['of examples before one that fails at once', (i) => (i === 2 ? thrown() : late(i)), true],
    ['of examples that come after a loop without await', (i) => late(i), false],
  ])('%s are freed', async (_, get, waits) => {
    const before = live()
    const loader = new DataLoader({ length: 3, get }, { batchSize: 3 })
    if (waits) await expect(epochOf(loader)).rejects.toThrow('mine')
    else expect(() => [...loader]).toThrow('needs for await')
    await expect.poll(live).toEqual(before)
    for (let i = 0; i < 20; i++) await setImmediate()
    expect(live()).toEqual(before)
  })

  test('of batches made ahead are in no scope of the loop', async () => {
    const before = live()
    const loader = new DataLoader([1, 2, 3, 4], { batchSize: 1, collate: (rows) => tensor(rows) })
    const batches = loader[Symbol.asyncIterator]()
    const seen: number[] = []
    for (let done = false; !done; )
      done = await scope(async () => {
        const next = await batches.next()
        if (!next.done) seen.push(...values(next.value))
        return next.done ?? false
      })
    expect(seen).toEqual([1, 2, 3, 4])
    expect(live()).toEqual(before)
  })

  test('that are kept are not freed', async () => {
    const cache = new Map<number, Tensor>()
    const get = (i: number): Tensor => {
      const row = cache.get(i) ?? keep(tensor([i]))
      cache.set(i, row)
      return row
    }
    const loader = new DataLoader({ length: 3, get }, { batchSize: 2 })
    for (const _ of [1, 2]) expect((await epochOf(loader)).flat().map((row) => values(row)[0])).toEqual([0, 1, 2])
    for (const row of cache.values()) row.dispose()
  })

  test('memory is flat over epochs', async () => {
    using inputs = randn([1000, 64])
    const loader = new DataLoader(tensorDataset(inputs), { batchSize: 100, shuffle: true })
    const bytes: number[] = []
    for (let i = 0; i < 5; i++) {
      for await (const [rows] of loader) scope(() => rows.square().sum().item())
      bytes.push(memory().bytes)
    }
    expect(new Set(bytes).size).toBe(1)
  })
})

test('a checkpoint keeps the position', async () => {
  const make = () => ({ model: new Linear(2, 1), loader: new DataLoader(numbers(10), { batchSize: 3, shuffle: true }) })
  const run = make()
  const all = [...run.loader]
  run.loader.moveTo(0, 2)
  const path = join(folder, 'loader.safetensors')
  await saveCheckpoint(path, { ...run, step: 2 })
  const resumed = make()
  await loadCheckpoint(path, resumed)
  expect([...resumed.loader]).toEqual(all.slice(2))
  const other = { model: run.model, loader: new DataLoader(numbers(11), { batchSize: 3, shuffle: true }) }
  await expect(loadCheckpoint(path, other)).rejects.toThrow(
    /the state of the loader does not fit: the number of examples must be 11, got 10/,
  )
  expect(other.loader.batch).toBe(0)
  for (const _ of other.loader)
    await expect(loadCheckpoint(path, other)).rejects.toThrow('a loop over this loader is running')
})

describe('errors', () => {
  const batchSize = 2
  test.each<[string, () => unknown]>([
    ['source must be an array, an object with length and get', () => new DataLoader({} as never, { batchSize })],
    ['batchSize must be', () => new DataLoader([1], {} as never)],
    ['collate must be a function', () => new DataLoader([1], { batchSize, collate: 3 as never })],
    [
      'collate is for sources of examples',
      () => new DataLoader(tensorDataset(tensor([1])) as never, { batchSize, collate: () => 1 }),
    ],
    ['batch must be', () => new DataLoader([1], { batchSize }).moveTo(0, 2)],
    ['epoch must be', () => new DataLoader([1], { batchSize }).moveTo(-1)],
    ['state must be the object', () => new DataLoader([1], { batchSize }).setState(null as never)],
    [
      'shuffle must be false, got true',
      () => new DataLoader([1], { batchSize }).setState(new DataLoader([1], { batchSize, shuffle: true }).toJSON()),
    ],
    ['a stream needs for await', () => [...new DataLoader<number>(() => [1], { batchSize })]],
    ['returns promises needs for await', () => [...new DataLoader({ length: 2, get: async () => 1 }, { batchSize })]],
    [
      'collate that returns promises needs for await',
      () => [...new DataLoader([1], { batchSize, collate: async () => 1 })],
    ],
    ['tensor 1 must have 2 rows', () => tensorDataset(tensor([1, 2]), tensor([1]))],
    ['needs at least one tensor', () => tensorDataset()],
    ['must be [N, …], got []', () => tensorDataset(tensor(1))],
  ])('%s', (text, fn) => {
    expect(fn).toThrow(text)
  })

  test('a stream that is no iterable', async () => {
    const next = new DataLoader(() => 5 as never, { batchSize })[Symbol.asyncIterator]().next()
    await expect(next).rejects.toThrow('[DataLoader] a stream must return an iterable of examples, got 5')
  })

  test('of the source come in their turn, and the loop can begin again', async () => {
    const broken = async (i: number) => {
      if (i === 3) throw new Error('example 3')
      return i
    }
    const loader = new DataLoader({ length: 6, get: broken }, { batchSize: 1, prefetch: 5 })
    const got: number[][] = []
    await expect(async () => {
      for await (const batch of loader) got.push(batch)
    }).rejects.toThrow('example 3')
    expect(got).toEqual([[0], [1], [2]])
    expect(loader.batch).toBe(3)
    loader.moveTo(0, 4)
    expect(await epochOf(loader)).toEqual([[4], [5]])
  })

  test('one loop at a time', () => {
    const loader = new DataLoader([1, 2, 3], { batchSize: 1 })
    for (const _ of loader) {
      expect(() => [...loader]).toThrow('a loop over this loader is running')
      expect(() => loader.moveTo(0)).toThrow('a loop over this loader is running')
    }
  })
})
