import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { at, bin, folder, succeeded, tiny, weights } from './support/cli.js'

/** `st-moe train -`. */

const piped = (args: readonly string[], input: string) =>
  spawnSync(process.execPath, [bin, ...args], { cwd: folder, input, encoding: 'utf8' })
test('- is the text of standard input, for a resumed run, too', async () => {
  const text = readFileSync(at('book.txt'), 'utf8')
  const sizes = [...tiny, '--steps', '20']
  expect(piped(['train', '-', ...sizes], text)).toMatchObject({ status: 0, stderr: '' })
  await succeeded(['train', 'book.txt', '--out', 'from-file', ...sizes])
  expect(weights('runs/input').equals(weights('from-file'))).toBe(true)
  expect(JSON.parse(readFileSync(at('runs/input/run.json'), 'utf8')).text).toMatchObject({
    path: '-',
    name: 'standard input',
  })
  expect(await succeeded(['generate', 'runs/input', '--length', '5'])).toHaveLength(6)
  const more = ['train', '--resume', '--out', 'runs/input', '--steps', '30']
  expect(piped(more, text)).toMatchObject({ status: 0, stderr: '' })
  await succeeded(['train', '--resume', '--out', 'from-file', '--steps', '30'])
  expect(weights('runs/input').equals(weights('from-file'))).toBe(true)
  expect(piped(more, 'another text').stderr).toMatch(/^st-moe train: - has 12 characters; a context of 16 needs/)
  expect(piped(['train', '-', '--out', 'none', ...sizes], '').stderr).toBe('st-moe train: - is empty\n')
  expect(piped(['train', '-', '--out', 'none', ...sizes], 'a'.repeat(2 ** 26 + 1)).stderr).toBe(
    'st-moe train: standard input has more than 67108864 bytes\n',
  )
  expect(existsSync(at('none'))).toBe(false)
})
