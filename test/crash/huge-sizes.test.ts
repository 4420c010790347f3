import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { emulated, runChild, sanitized } from '../support/child.js'
import { Draw } from '../support/numbers.js'
import { writeModels } from '../support/transformers-folder.js'
import { drawModel, families } from '../support/transformers-reference.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-huge-sizes-'))
afterAll(() => rmSync(folder, { recursive: true }))

test('a number of config.json that does not fit is refused within 100 ms and 60 MB', async () => {
  for (const type of Object.keys(families))
    writeModels(join(folder, type), [drawModel(new Draw(type.length), type, { D: 4, H: 3, E: 6, K: 2 }, 0)])
  const { code, stdout, stderr } = await runChild('huge-sizes.mjs', [folder], { nodeArgs: ['--expose-gc'] })
  expect([code, stderr]).toEqual([0, ''])
  const { counts, slow, riseMb, longest } = JSON.parse(stdout)
  const { accepted, ...refused } = counts
  expect(Object.keys(refused).sort()).toEqual(['FILE_FORMAT', 'OPTION', 'STATE_DICT'])
  expect(refused.STATE_DICT).toBeGreaterThan(4 * Object.keys(families).length)
  expect(longest).toBeLessThan(2500)
  if (sanitized || emulated) return
  expect(slow).toEqual([])
  expect(riseMb).toBeLessThan(60)
})
