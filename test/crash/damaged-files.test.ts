import { expect, test } from 'vitest'
import { runChild, sanitized } from '../support/child.js'
import { long, runSeed } from '../support/numbers.js'

/** Longer campaigns: `node --import tsx test/children/damaged-files.mjs <seed> <files>`. */
const files = long ? 3000 : 900

test(`${files} damaged files load or are MoeErrors, and change nothing then (seed ${runSeed()})`, async () => {
  const { stdout, stderr, code } = await runChild('damaged-files.mjs', [`${runSeed()}`, `${files}`], {
    nodeArgs: ['--import', 'tsx'],
  })
  expect(stderr).toBe('')
  const { problems, counts, peakMb, slowestMs } = JSON.parse(stdout)
  expect([problems, code]).toEqual([[], 0])
  for (const outcome of ['loaded', 'models', 'FILE_FORMAT', 'STATE_DICT'])
    expect(counts[outcome], outcome).toBeGreaterThan(0)
  if (sanitized) return
  expect(peakMb).toBeLessThan(1000) // of all together
  expect(slowestMs).toBeLessThan(2000)
})
