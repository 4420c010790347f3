import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { emulated, runChild, sanitized } from '../support/child.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-huge-options-'))
afterAll(() => rmSync(folder, { recursive: true }))

test('a run.json of another model than its checkpoint is refused before a name or a tensor is made', async () => {
  const { code, stdout, stderr } = await runChild('huge-options.mjs', [folder])
  expect([code, stderr]).toEqual([0, ''])
  const { counts, slow, riseMb, numbers } = JSON.parse(stdout)
  expect(numbers).toHaveLength(8)
  const { loaded, ...refused } = counts
  expect(loaded).toBeGreaterThan(0)
  expect(Object.keys(refused).sort()).toEqual(['FILE_FORMAT', 'STATE_DICT'])
  if (sanitized || emulated) return
  expect(slow).toEqual([])
  expect(riseMb).toBeLessThan(2 * 30 + 100)
})
