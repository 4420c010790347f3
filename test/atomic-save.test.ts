import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, afterEach, expect, test, vi } from 'vitest'
import { full, loadSafetensorsSync, saveSafetensors, saveSafetensorsSync, scope } from '../lib/index.js'
import { Draw } from './support/numbers.js'

const faults = vi.hoisted(() => ({ countdown: Infinity, code: '' }))

/** Counts calls down and fails one of them, as a full or broken disk would. */
vi.mock('node:fs', async (importOriginal) => {
  const original = await importOriginal<typeof fs>()
  const failing =
    <A extends unknown[], R>(call: (...args: A) => R) =>
    (...args: A): R => {
      if (--faults.countdown === 0) throw Object.assign(new Error(faults.code), { code: faults.code })
      return call(...args)
    }
  return {
    ...original,
    openSync: failing(original.openSync),
    writeSync: failing(original.writeSync),
    fsyncSync: failing(original.fsyncSync),
    renameSync: failing(original.renameSync),
  }
})

const folder = fs.mkdtempSync(join(tmpdir(), 'st-moe-atomic-'))
const file = join(folder, 'state.safetensors')
afterAll(() => fs.rmSync(folder, { recursive: true }))
afterEach(() => {
  faults.countdown = Infinity
})

const saveLoop = fileURLToPath(new URL('children/save-loop.mjs', import.meta.url))
const kills = 30

test(`${kills} × SIGKILL while saving leave the old file or the new one`, async () => {
  const draw = new Draw(4)
  let versions = 0
  for (let kill = 0; kill < kills; kill++) {
    const child = spawn(process.execPath, [saveLoop, file], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(child.stdout, 'data')
    await new Promise((resolve) => setTimeout(resolve, draw.between(0, 25)))
    child.kill('SIGKILL')
    await once(child, 'close')
    versions += scope(() => {
      const { a, b, c } = loadSafetensorsSync(file).tensors
      const version = c.item()
      expect([...new Set([...a.dataSync(), ...b.dataSync()])]).toEqual([version])
      return version
    })
  }
  expect(versions).toBeGreaterThan(kills) // some were killed later than in their first save
}, 300_000)

test.each(['ENOSPC', 'EIO'])('%s at any step of a save leaves the old file and nothing else', (code) => {
  for (const name of fs.readdirSync(folder)) fs.rmSync(join(folder, name))
  const state = (value: number) => ({ a: full([5], value), b: full([3], value) })
  const value = () => loadSafetensorsSync(file).tensors.a.dataSync()[0]
  saveSafetensorsSync(file, state(1))
  let failures = 0
  for (let step = 1; ; step++) {
    Object.assign(faults, { countdown: step, code })
    let failed = false
    try {
      saveSafetensorsSync(file, state(1 + step))
    } catch (error) {
      expect(error).toMatchObject({ code })
      failed = true
    }
    const reached = faults.countdown <= 0
    faults.countdown = Infinity
    expect(fs.readdirSync(folder)).toEqual(['state.safetensors'])
    if (!failed) {
      expect(reached).toBe(false)
      expect(value()).toBe(1 + step)
      break
    }
    failures++
    // Only the fsync of the folder comes after the rename, and then the new file is there.
    expect([1, 1 + step]).toContain(value())
    if (value() !== 1) saveSafetensorsSync(file, state(1))
  }
  expect(failures).toBeGreaterThanOrEqual(8) // open, four writes, fsync, rename, open and fsync of the folder
})

test('a save into a folder that is not there is an error, and so is one over a folder', async () => {
  const state = { a: full([2], 1) }
  const missing = join(folder, 'no', 'file')
  expect(() => saveSafetensorsSync(missing, state)).toThrow(expect.objectContaining({ code: 'ENOENT' }))
  await expect(saveSafetensors(missing, state)).rejects.toMatchObject({ code: 'ENOENT' })
  const before = fs.readdirSync(folder)
  fs.mkdirSync(join(folder, 'taken'))
  expect(() => saveSafetensorsSync(join(folder, 'taken'), state)).toThrow(Error)
  await expect(saveSafetensors(join(folder, 'taken'), state)).rejects.toThrow(Error)
  fs.rmdirSync(join(folder, 'taken'))
  expect(fs.readdirSync(folder)).toEqual(before)
})

test('saves at the same time do not disturb each other', async () => {
  const saves = Array.from({ length: 8 }, (_, i) => saveSafetensors(file, { a: full([1000], i) }))
  await Promise.all(saves)
  expect(new Set(loadSafetensorsSync(file).tensors.a.dataSync()).size).toBe(1)
  expect(fs.readdirSync(folder)).toEqual(['state.safetensors'])
})
