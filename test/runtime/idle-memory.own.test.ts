// Not on the emulator: the cache is that of the CPU.
import { setTimeout as delay } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { memory, ones, zeros } from '../../lib/index.js'
import { runChild, sanitized } from '../support/child.js'

// Freed memory of the CPU goes back to the system when nobody has used it for two seconds, four at most.

const cached = (): number => memory().devices.cpu.cachedBytes
const megabytes = (count: number): void => ones([count * 2 ** 18], { device: 'cpu' }).dispose()

describe.skipIf(sanitized)('cached memory', () => {
  test('goes back to the system', async () => {
    megabytes(1)
    const before = process.memoryUsage().rss
    megabytes(600)
    expect(process.memoryUsage().rss - before).toBeGreaterThan(500e6)
    await expect.poll(cached, { timeout: 20_000, interval: 100 }).toBe(0)
    expect(process.memoryUsage().rss - before).toBeLessThan(50e6)
  }, 30_000)

  test('stays while it is used', async () => {
    megabytes(100)
    megabytes(40)
    const seen: number[] = []
    for (let i = 0; i < 60; i++) {
      megabytes(40)
      await delay(100)
      seen.push(Math.round(cached() / 1e6))
    }
    expect(seen[0]).toBeGreaterThan(140)
    expect(seen.at(-1)).toBeGreaterThanOrEqual(42)
    expect(seen.at(-1)).toBeLessThan(60)
    expect(Math.min(...seen)).toBeGreaterThanOrEqual(42)
  }, 30_000)

  test('is given back after a tensor that lived long, too', async () => {
    const x = zeros([2 ** 20], { device: 'cpu' })
    await expect.poll(cached, { timeout: 20_000, interval: 100 }).toBe(0)
    x.dispose()
    expect(cached()).toBeGreaterThan(4e6)
    await expect.poll(cached, { timeout: 20_000, interval: 100 }).toBe(0)
  }, 60_000)

  test('keeps no process alive', async () => {
    const { code, stdout } = await runChild('idle-memory.mjs', [])
    expect([code, Number(stdout)]).toEqual([0, expect.any(Number)])
    expect(Number(stdout)).toBeGreaterThan(4e6)
  })
})
