import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, expect, test } from 'vitest'
import { utils } from '../../lib/index.js'
import { reservedName } from '../../lib/io/make-folder.js'

const { platform } = process
const claim = (value: string) => Object.defineProperty(process, 'platform', { value })
afterEach(() => void claim(platform))

test.each(['con', 'NUL', 'aux.txt', 'runs/Prn', 'C:\\runs\\com1\\book', 'lpt9.tar.gz', 'com²', 'nul .x', 'CONOUT$'])(
  '%s is a device of Windows',
  (path) => {
    expect(reservedName(path)).not.toBe(null)
  },
)

test.each(['runs/book', 'console', 'nulls', 'com', 'com10', 'my.con', 'C:\\auxiliary\\lpt'])('%s is not', (path) => {
  expect(reservedName(path)).toBe(null)
})

test('makeFolder refuses them on Windows, and makes nothing', () => {
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-names-'))
  try {
    claim('win32')
    expect(() => utils.makeFolder(join(folder, 'runs', 'nul'))).toThrow(/Windows reserves the name nul for a device/)
    expect(existsSync(join(folder, 'runs'))).toBe(false)
    claim('linux')
    utils.makeFolder(join(folder, 'nul'))
    expect(existsSync(join(folder, 'nul'))).toBe(true)
  } finally {
    claim(platform)
    rmSync(folder, { recursive: true })
  }
})
