import { join } from 'node:path'
import { expect, test } from 'vitest'
import { emulated, runChild, sanitized } from '../support/child.js'
import { Draw } from '../support/numbers.js'
import { temporary } from '../support/temporary.js'
import { writeModels } from '../support/transformers-folder.js'
import { drawModel, families } from '../support/transformers-reference.js'

test('a file with any number changed loads or is refused, within 100 ms and twice the file and 100 MB', async () => {
  const folder = temporary()
  const models = join(folder, 'models')
  for (const type of Object.keys(families))
    writeModels(join(models, type), [drawModel(new Draw(type.length), type, { D: 4, H: 3, E: 6, K: 2 }, 0)])
  const { code, stdout, stderr } = await runChild('every-number.mjs', [folder, models], {
    nodeArgs: ['--import', 'tsx'],
  })
  expect([code, stderr]).toEqual([0, ''])
  const { counts, changes, wrong } = JSON.parse(stdout)
  const { loaded, ...refused } = counts
  expect(loaded).toBeGreaterThan(0)
  expect(Object.keys(refused).sort()).toEqual(['FILE_FORMAT', 'OPTION', 'STATE_DICT'])
  expect(Object.keys(changes)).toHaveLength(11)
  const isCost = (text: string): boolean => / ms$| bytes of memory /.test(text)
  expect(wrong.filter((text: string) => !(isCost(text) && (sanitized || emulated)))).toEqual([])
})
