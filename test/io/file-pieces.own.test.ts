// Not on the emulator: it counts what is read of files before the library is loaded, a device needs it loaded first.
import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, test, vi } from 'vitest'
import {
  AdamW,
  Linear,
  loadCheckpoint,
  loadSafetensors,
  loadSafetensorsSync,
  ones,
  type StateDict,
  saveCheckpoint,
  saveSafetensors,
  saveSafetensorsSync,
  scope,
  tensor,
} from '../../lib/index.js'

// A file system that does less than it was asked for, as it may: a few bytes a call. And what is left open.

const system = vi.hoisted(() => ({ piece: 0, open: 0, reads: [] as [from: number, to: number][] }))

vi.mock('node:fs', async (importOriginal) => {
  const original = await importOriginal<typeof fs>()
  type Call = (...args: unknown[]) => unknown
  const calls = original as unknown as Record<string, Call>
  /** Both forms of a function, with arguments changed, and something done after a success. */
  const both = (name: string, change: (args: unknown[]) => void, after = () => {}) => ({
    [`${name}Sync`]: (...args: unknown[]) => {
      change(args)
      const result = calls[`${name}Sync`](...args)
      after()
      return result
    },
    [name]: (...args: unknown[]) => {
      change(args)
      const done = args.pop() as Call
      calls[name](...args, (error: unknown, ...rest: unknown[]) => {
        if (!error) after()
        done(error, ...rest)
      })
    },
  })
  const less = (args: unknown[]) => {
    if (system.piece > 0) args[3] = Math.min(args[3] as number, system.piece)
  }
  const noted = (args: unknown[]) => {
    less(args)
    const [length, position] = args.slice(3) as number[]
    system.reads.push([position, position + length])
  }
  return {
    ...original,
    ...both('read', noted),
    ...both('write', less),
    ...both(
      'open',
      () => {},
      () => system.open++,
    ),
    ...both(
      'close',
      () => {},
      () => system.open--,
    ),
  }
})

const folder = fs.mkdtempSync(join(tmpdir(), 'st-moe-pieces-'))
const file = join(folder, 'state.safetensors')
afterAll(() => fs.rmSync(folder, { recursive: true }))
beforeEach(() => Object.assign(system, { piece: 0, open: 0, reads: [] }))

const forms = {
  synchronous: {
    save: async (state: StateDict) => saveSafetensorsSync(file, state),
    load: async () => loadSafetensorsSync(file),
  },
  asynchronous: { save: (state: StateDict) => saveSafetensors(file, state), load: () => loadSafetensors(file) },
}

test('the bytes of tensors that nobody wants are not read', async () => {
  const state = Object.fromEntries(['a', 'b', 'c', 'd', 'e'].map((name, i) => [name, tensor([i, i, i, i])]))
  saveSafetensorsSync(file, state)
  const length = Number(fs.readFileSync(file).readBigUInt64LE()) + 8
  const wanted = [
    [0, 8],
    [8, length],
    [length + 16, length + 32],
    [length + 48, length + 80],
  ]
  for (const load of [async (names: string[]) => loadSafetensorsSync(file, { names }), readNames]) {
    system.reads = []
    const { tensors } = await load(['e', 'd', 'b'])
    expect(Object.entries(tensors).map(([name, value]) => [name, ...value.dataSync()])).toEqual([
      ['b', 1, 1, 1, 1],
      ['d', 3, 3, 3, 3],
      ['e', 4, 4, 4, 4],
    ])
    expect(system.reads).toEqual(wanted)
  }
})

test('a checkpoint is read as far as it is restored', async () => {
  const model = new Linear(16, 16)
  const optimizer = new AdamW(model.parameters())
  model
    .forward(ones([1, 16]))
    .sum()
    .backward()
  optimizer.step()
  await saveCheckpoint(file, { model, optimizer, step: 1 })
  const header = Number(fs.readFileSync(file).readBigUInt64LE()) + 8
  const weights = 4 * (16 * 16 + 16)
  const readBytes = async (targets: Parameters<typeof loadCheckpoint>[1]) => {
    system.reads = []
    await loadCheckpoint(file, targets)
    return system.reads.reduce((sum, [from, to]) => sum + to - from, 0)
  }
  expect(await readBytes({ model })).toBe(header + weights)
  expect(await readBytes({ model, optimizer })).toBe(fs.statSync(file).size)
})

/** The list may change as soon as the call returns. */
function readNames(names: string[]) {
  const loading = loadSafetensors(file, { names })
  names.length = 0
  return loading
}

describe.each(Object.entries(forms))('%s', (_, { save, load }) => {
  const numbers = Float32Array.from({ length: 50 }, (_, i) => Math.sin(i))
  const saved = () => ({ a: tensor(numbers), b: tensor(Int32Array.of(1, 2, 3)), c: tensor(numbers, [5, 10]) })
  const loaded = () =>
    scope(async () => Object.values((await load()).tensors).map((value) => [value.shape, ...value.dataSync()]))

  test.each([1, 3, 7, 64])('%d bytes at a time give the same file and the same tensors', async (piece) => {
    await scope(() => save(saved()))
    const [bytes, tensors] = [fs.readFileSync(file), await loaded()]
    expect(tensors[0]).toEqual([[50], ...numbers])
    fs.rmSync(file)
    system.piece = piece
    await scope(() => save(saved()))
    expect(fs.readFileSync(file).equals(bytes)).toBe(true)
    expect(await loaded()).toEqual(tensors)
  })

  test('nothing is left open, by an error neither', async () => {
    await scope(() => save(saved()))
    await loaded()
    expect(system.open).toBe(0)
    const whole = fs.readFileSync(file)
    for (const length of [0, 7, 100, whole.length - 1]) {
      fs.writeFileSync(file, whole.subarray(0, length))
      system.open = 0
      await expect(load()).rejects.toMatchObject({ code: 'FILE_FORMAT' })
      expect(system.open).toBe(0)
    }
  })
})
