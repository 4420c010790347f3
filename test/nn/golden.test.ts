import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { checkCase, type Float } from '../support/golden-case.js'

// ST_MOE_GOLDEN: another folder with files of the same form.
const folder = process.env.ST_MOE_GOLDEN ?? fileURLToPath(new URL('../golden', import.meta.url))
const files = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith('.safetensors')) : []

test('there are cases', () => {
  expect(files.length).toBeGreaterThan(0)
  if (!process.env.ST_MOE_GOLDEN) expect(files.length).toBe(23)
})

describe.each(files)('%s', (file) => {
  test.each<Float>(['f32', 'f64'])('%s', (dtype) => {
    const findings = checkCase(join(folder, file), dtype)
    expect(findings.length).toBeGreaterThan(4)
    expect(findings.filter(({ error, limit }) => !(error <= limit))).toEqual([])
  })
})
