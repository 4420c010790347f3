import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  type Device,
  emptyCache,
  getDefaultDevice,
  MoE,
  manualSeed,
  memory,
  randn,
  scope,
  setMemoryLimit,
  zeros,
} from '../../lib/index.js'
import { sanitized } from '../support/child.js'

const device = getDefaultDevice()
const MiB = 2 ** 20
const cached = (): number => memory().devices[device]?.cachedBytes ?? 0
const megabytes = (count: number) => zeros([count, MiB / 4], { device })
const outOfMemory = (text = '') =>
  expect.objectContaining({ code: 'OUT_OF_MEMORY', message: expect.stringContaining(text) })

beforeEach(() => emptyCache())
afterEach(() => setMemoryLimit(device, Infinity))

// Under a sanitizer nothing is cached on the CPU.
describe.skipIf(sanitized)('emptyCache', () => {
  test('gives back what is cached, of all devices or of one', () => {
    const empty = cached()
    for (const argument of [undefined, device]) {
      megabytes(3).dispose()
      expect(cached()).toBeGreaterThanOrEqual(empty + 3 * MiB)
      emptyCache(argument)
      expect(cached()).toBe(empty)
    }
  })

  test('of another device, or of one that has not been used, changes nothing', () => {
    megabytes(2).dispose()
    const before = cached()
    for (const other of ['cpu', 'cuda:7'] as Device[]) if (other !== device) emptyCache(other)
    expect(cached()).toBe(before)
    expect(() => emptyCache('gpu' as Device)).toThrow(expect.objectContaining({ code: 'DEVICE' }))
  })

  test('live tensors keep their values', () => {
    const [x, unused] = [megabytes(1), megabytes(1)]
    unused.dispose()
    emptyCache()
    expect(x.add(1).sum().item()).toBe(MiB / 4)
    x.dispose()
  })
})

describe('setMemoryLimit', () => {
  /** A limit that leaves room for so many MiB besides what is taken now. */
  function leave(room: number): number {
    const { bytes, cachedBytes } = memory().devices[device]
    const limit = bytes + cachedBytes + room * MiB
    setMemoryLimit(device, limit)
    return limit
  }

  test('is an OUT_OF_MEMORY error that names the limit, and leaves everything as it was', () => {
    const x = megabytes(1)
    const limit = leave(24)
    const { tensors } = memory()
    expect(() => megabytes(32)).toThrow(outOfMemory(`its limit is ${limit}`))
    expect(memory().tensors).toBe(tensors)
    expect(x.sum().item()).toBe(0)
    setMemoryLimit(device, Infinity)
    megabytes(32).dispose()
    x.dispose()
  })

  test('counts tensors together, and memory that was freed can be used again', () => {
    expect(() => zeros([2 ** 40], { device })).toThrow(outOfMemory()) // which counts for nothing
    leave(48)
    const first = megabytes(32)
    expect(() => megabytes(32)).toThrow(outOfMemory())
    first.dispose()
    // Of another size: what is cached must be given back first.
    for (const count of [40, 33, 41]) megabytes(count).dispose()
  })

  test('holds for what operations need, and a call succeeds once there is room', () => {
    const moe = new MoE({ dim: 16, numExperts: 4, device }).eval()
    const x = randn([2, 64, 16], { device })
    const forward = () => {
      manualSeed(1) // of the routing
      return scope(() => moe.forward(x).outputs.sum().item())
    }
    const expected = forward()
    emptyCache()
    leave(0)
    expect(forward).toThrow(outOfMemory())
    setMemoryLimit(device, Infinity)
    expect(forward()).toBe(expected)
    moe.dispose()
    x.dispose()
  })

  test.each([0, -1, 1.5, Number.NaN, -Infinity, 2 ** 53, '1e9', null, undefined])(
    'of %s bytes is an OPTION error',
    (bytes) => {
      expect(() => setMemoryLimit(device, bytes as number)).toThrow(expect.objectContaining({ code: 'OPTION' }))
      megabytes(1).dispose()
    },
  )

  test('of an unknown device is a DEVICE error', () => {
    expect(() => setMemoryLimit('gpu' as Device, 1)).toThrow(expect.objectContaining({ code: 'DEVICE' }))
  })
})
