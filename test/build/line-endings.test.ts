import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { root } from '../support/blocks.js'
import { long } from '../support/numbers.js'

// Git for Windows checks out with CRLF unless the repository says otherwise.

const work = mkdtempSync(join(tmpdir(), 'st-moe-lines-'))
afterAll(() => rmSync(work, { recursive: true, force: true }))

const git = (cwd: string, ...args: string[]) =>
  execFileSync('git', ['-c', 'user.name=t', '-c', 'user.email=t@t', ...args], { cwd, encoding: 'utf8' })

/** A copy of what `npm run build:ts` reads, of the working tree as it is. */
function copy(to: string, change: (text: Buffer) => Buffer = (text) => text): string {
  const of = ['.gitattributes', 'package.json', 'tsconfig.json', 'lib', 'language-model', 'cli', 'scripts', 'native/core']
  const listed = git(root, 'ls-files', '-z', '--cached', '--others', '--exclude-standard', ...of).split('\0')
  for (const file of listed.filter((name) => name && existsSync(join(root, name)))) {
    mkdirSync(dirname(join(to, file)), { recursive: true })
    cpSync(join(root, file), join(to, file))
    writeFileSync(join(to, file), change(readFileSync(join(root, file))))
  }
  return to
}

const withCrlf = (text: Buffer) => Buffer.from(text.toString('latin1').replaceAll('\n', '\r\n'), 'latin1')
const isCrlf = (file: string) => readFileSync(file, 'latin1').includes('\r\n')

/** A clone of the sources, made as Git for Windows makes it. */
function cloned(): { origin: string; clone: string } {
  const folder = mkdtempSync(join(work, 'cloned-'))
  const origin = copy(join(folder, 'origin'))
  git(origin, 'init', '--quiet')
  git(origin, 'add', '--all')
  git(origin, 'commit', '--quiet', '--message', 'all')
  const clone = join(folder, 'clone')
  git(folder, 'clone', '--quiet', '-c', 'core.autocrlf=true', origin, clone)
  return { origin, clone }
}

test('a clone with core.autocrlf has the bytes of its origin', () => {
  const { origin, clone } = cloned()
  const files = git(clone, 'ls-files', '-z').split('\0').filter(Boolean)
  expect(files.length).toBeGreaterThan(200)
  const same = (file: string) => readFileSync(join(clone, file)).equals(readFileSync(join(origin, file)))
  expect(files.filter((file) => isCrlf(join(clone, file)) || !same(file))).toEqual([])
})

test.skipIf(!long)('a clone with core.autocrlf can be built', () => {
  const { clone } = cloned()
  symlinkSync(join(root, 'node_modules'), join(clone, 'node_modules'))
  execFileSync(process.execPath, ['scripts/build.mjs'], { cwd: clone, stdio: 'pipe' })
  expect(existsSync(join(clone, 'dist/types/lib/index.d.ts'))).toBe(true)
})

test('declarations of ops are read from files with CRLF as well', () => {
  const tree = copy(join(work, 'crlf'), withCrlf)
  expect(isCrlf(join(tree, 'native/core/ops.inc'))).toBe(true)
  execFileSync(process.execPath, ['scripts/native-ops.mjs'], { cwd: tree, stdio: 'pipe' })
  const made = readFileSync(join(tree, 'lib/runtime/native-ops.ts'), 'utf8').replaceAll('\r\n', '\n')
  expect(made).toBe(readFileSync(join(root, 'lib/runtime/native-ops.ts'), 'utf8'))
})
