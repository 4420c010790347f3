import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, expect, test } from 'vitest'
import { loadSafetensorsSync, saveSafetensorsSync, scope, zeros } from '../../lib/index.js'
import { Draw, long } from '../support/numbers.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-killed-saves-'))
const file = join(folder, 'state.safetensors')
afterAll(() => rmSync(folder, { recursive: true }))

const saveLoop = fileURLToPath(new URL('../children/save-loop.mjs', import.meta.url))
const kills = long ? 30 : 6

test(`${kills} × SIGKILL while saving leave the old file or the new one`, async () => {
  const draw = new Draw(4)
  for (let kill = 0; kill < kills; kill++) {
    const child = spawn(process.execPath, [saveLoop, file], { stdio: ['ignore', 'pipe', 'inherit'] })
    const closed = once(child, 'close')
    const saved = 1 + (kill % 3) // so that each function meets the file of the other
    for await (const line of createInterface(child.stdout)) if (Number(line) === saved) break
    await sleep(draw.between(0, 10)) // somewhere in the next saves
    child.kill('SIGKILL')
    await closed
    scope(() => {
      const { a, b, c } = loadSafetensorsSync(file).tensors
      const version = c.item()
      expect(version).toBeGreaterThanOrEqual(saved)
      expect([...new Set([...a.dataSync(), ...b.dataSync()])]).toEqual([version])
    })
  }
  saveSafetensorsSync(file, { a: zeros([1]) })
  expect(readdirSync(folder)).toEqual(['state.safetensors'])
})
