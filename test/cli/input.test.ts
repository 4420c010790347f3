import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { Readable } from 'node:stream'
import { expect, test, vi } from 'vitest'
import { readInput } from '../../cli/files.js'
import { parseFlags } from '../../cli/flags.js'
import { at, bin, cli, expectRefused, folder, succeeded, tiny, weights } from '../support/cli.js'

/** The text of `st-moe train`. */

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
  expect(existsSync(at('none'))).toBe(false)
})

test.each<[string, string, string | Buffer | null, RegExp]>([
  ['no file', 'none.txt', null, /cannot read .*none\.txt: ENOENT: no such file or directory/],
  ['a device', '/dev/zero', null, /\/dev\/zero: it is a device, not a regular file/],
  ['an empty file', 'empty.txt', '', /empty\.txt is empty/],
  ['without end', '/proc/self/pagemap', null, /pagemap is empty/],
  ['a byte order mark alone', 'mark.txt', '\ufeff', /mark\.txt is empty/],
  ['one byte', 'byte.txt', 'a', /has 1 characters; a context of 16 needs at least 170/],
  ['a short file', 'short.txt', 'a'.repeat(160), /has 160 characters; a context of 16 needs at least 170/],
  ['zero bytes', 'binary.txt', Buffer.alloc(4096), /is not a text file: it contains a zero byte/],
  ['Latin-1', 'latin.txt', Buffer.from([0xe9, 0x20, 0x61]), /is not valid UTF-8/],
])('%s is no text', async (_what, name, content, message) => {
  if (content !== null) writeFileSync(at(name), content)
  expectRefused(await cli(['train', name, '--out', 'bad', ...tiny]), 1, message)
  expect(existsSync(at('bad'))).toBe(false)
})

test('more than 2 GiB are refused unread', async () => {
  writeFileSync(at('huge.txt'), '')
  truncateSync(at('huge.txt'), 2 ** 31 + 1) // takes no space
  const refused = await cli(['train', 'huge.txt', '--out', 'bad', ...tiny])
  expectRefused(refused, 1, /huge\.txt has 2147483649 bytes, at most 2147483648 are allowed: train on a part of it$/m)
  expect(existsSync(at('bad'))).toBe(false)
})

test('standard input ends where it has more bytes than are allowed', async () => {
  const input = vi
    .spyOn(process, 'stdin', 'get')
    .mockReturnValue(Readable.from(['abc', 'def'].map((text) => Buffer.from(text))) as never)
  await expect(readInput(5)).rejects.toThrow('standard input has more than 5 bytes: train on a part of it')
  input.mockRestore()
})

test('everything after -- is a name', () => {
  expect(parseFlags({}, ['a', '--', '--b', '-']).positionals).toEqual(['a', '--b', '-'])
})
