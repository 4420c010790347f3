// Not under sanitizers: JavaScript reads the headers.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { runChild, sanitized } from '../support/child.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-long-headers-'))
afterAll(() => rmSync(folder, { recursive: true }))

test('headers of 95 MB are refused with little memory', async () => {
  const { code, stdout, stderr } = await runChild('long-headers.mjs', [join(folder, 'a.safetensors')], {
    nodeArgs: ['--max-old-space-size=512'],
  })
  expect([code, stderr]).toEqual([0, ''])
  const { codes, peakMb } = JSON.parse(stdout)
  expect(new Set(Object.values(codes).flat())).toEqual(new Set(['FILE_FORMAT']))
  if (!sanitized) expect(peakMb).toBeLessThan(1000)
})
