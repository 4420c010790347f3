import { setTimeout as delay } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { beforeAll, describe, expect, test } from 'vitest'
import { Linear, Module } from '../../lib/index.js'
import { live } from '../support/baseline.js'
import { runChild, sanitized } from '../support/child.js'
import { emulator, emulatorBuilt } from '../support/emulator.js'
import { canFailAllocations, failingAllocations } from '../support/failing-allocations.js'
import { some } from '../support/numbers.js'

interface Row {
  name: string
  /** How many failures there were. */
  points: number
  wrong: number
  problems: string[]
}

/** Every operation of the child whose name has one of the words in it, with each of its allocations failing. */
async function tried(faults: string, device: string, words: readonly string[] = [], env: Record<string, string> = {}) {
  // It leaves many views to the garbage collector, which a warning would be right about.
  const all = { ST_MOE_NO_WARNINGS: '1', ...env }
  const { stdout, stderr, code } = await runChild('out-of-memory.mjs', [faults, device, ...words], { env: all })
  expect(stderr).toBe('')
  expect(code).toBe(0)
  const rows: Row[] = JSON.parse(stdout)
  const lines = rows.map(({ name, points, wrong }) => `${name.padEnd(40)} ${points} failures, ${wrong} wrong`)
  console.log([`out of memory on ${device}`, ...lines].join('\n'))
  expect(rows.flatMap(({ problems }) => problems)).toEqual([])
  return rows
}

describe.skipIf(!canFailAllocations)('any allocation may fail: an error, all as before, and the next call', () => {
  let faults = ''
  beforeAll(() => {
    faults = failingAllocations()
  })

  test('on the CPU', async () => {
    const rows = await tried(faults, 'cpu')
    expect(rows.length).toBeGreaterThan(50)
    for (const { name, points } of rows) expect(points, name).toBeGreaterThan(0)
  })

  test.skipIf(!emulatorBuilt || sanitized)('on the device of the emulator', async () => {
    const words = some(['gradDict', 'Module.to', 'forwardWithGrad', 'new', 'the first', 'second backward'], 3)
    const rows = await tried(faults, 'cuda', words, { ST_MOE_CUDA_LIBRARY: emulator })
    for (const { name, points } of rows) expect(points, name).toBeGreaterThan(0)
  })
})

test('a custom module whose constructor fails is left to the garbage collector', async () => {
  class Half extends Module {
    first = new Linear(8, 8)
    second = new Linear(8, -1)
  }
  const before = live()
  expect(() => new Half()).toThrow(/outFeatures/)
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')
  for (let i = 0; i < 1000 && live().tensors > before.tensors; i++) {
    collect()
    await delay(Math.min(i, 20)) // on a busy machine finalizers run late
  }
  expect(live()).toEqual(before)
})

test.skipIf(process.platform !== 'linux' || sanitized)(
  'a full cache is given back before there is an error',
  async () => {
    const run = async (...args: Parameters<typeof runChild>) => {
      const { stdout, stderr, code } = await runChild(...args)
      expect([code, stderr]).toEqual([0, ''])
      return JSON.parse(stdout)
    }
    const { vmPeakKb } = await run('full-cache.mjs')
    const { cachedBytes, large, left } = await run('full-cache.mjs', ['full'], { limitKb: vmPeakKb + (512 << 10) })
    expect(cachedBytes).toBeGreaterThan(32 << 20)
    expect(large).toBeGreaterThanOrEqual(cachedBytes / 2)
    expect(left).toBe(0)
  },
)
