import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { arrowsOf, circlesOf, importsOf, isAllowed } from '../../scripts/walls.mjs'
import { root } from '../support/blocks.js'

/** Which room may import which: the table of scripts/walls.mjs. */

const folders: string[] = []
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true })
})

/** What the script says of a copy of the sources in which some files have one more line. */
function withLines(lines: Record<string, string>) {
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-walls-'))
  folders.push(folder)
  for (const name of ['lib', 'language-model', 'cli', 'bench', 'examples'])
    cpSync(join(root, name), join(folder, name), { recursive: true })
  for (const [file, line] of Object.entries(lines)) writeFileSync(join(folder, file), line, { flag: 'a' })
  const { status, stdout } = spawnSync(process.execPath, [join(root, 'scripts/walls.mjs'), folder], {
    encoding: 'utf8',
  })
  return { status, stdout }
}

test('the walls stand, and the script prints what stands between them', () => {
  const { status, stdout } = withLines({})
  expect(stdout).toMatch(/^lib: (\d|1[0-2]) rooms, 1 loose file, \d floors, \d+ arrows, [01] back up$/m)
  expect({ status, forbidden: /forbidden.*/.exec(stdout)?.[0] }).toEqual({ status: 0, forbidden: undefined })
})

test('the script refuses a forbidden import, and files that load each other', () => {
  const { status, stdout } = withLines({
    'lib/ops/topk.ts': "import '../nn/moe.js'",
    'lib/tensor/handles.ts': "import './tensor.js'",
  })
  expect(status).toBe(1)
  expect(stdout).toContain('forbidden: lib/ops/topk.ts imports lib/nn/moe.ts')
  expect(stdout).toContain('forbidden: these files load each other: lib/tensor/handles.ts lib/tensor/tensor.ts')
})

test.each([
  ['upwards in lib', 'lib/ops/topk.ts', "import '../nn/moe.js'"],
  ['only of types', 'lib/runtime/check.ts', "import type { Tensor } from '../tensor/tensor.js'"],
  ['from a file of lib by a tenant', 'language-model/model.ts', "import '../lib/nn/moe.js'"],
  ['from a file of another tenant', 'bench/demo.ts', "export { Run } from '../cli/trainer/run.js'"],
  ['from a tenant by lib', 'lib/io/utils.ts', "export const later = () => import('../../language-model/index.js')"],
  [
    'from a tenant by a type',
    'lib/io/utils.ts',
    "export type M = import('../../language-model/index.js').LanguageModel",
  ],
  ['from the door of the doctor by bench', 'bench/demo.ts', "import '../lib/doctor/index.js'"],
  ['from a test', 'lib/io/utils.ts', "import '../../test/support/patience.js'"],
])('an import %s is forbidden', (_name, file, line) => {
  const [{ to }] = importsOf(file, line)
  expect(isAllowed(file, to)).toBe(false)
})

test('an import that only the running program knows is refused', () => {
  expect(() => importsOf('lib/a.ts', 'await import(name)')).toThrow(/only the running program knows/)
})

test('a room may import what stands below it', () => {
  expect(isAllowed('lib/nn/moe.ts', 'lib/ops/route.ts')).toBe(true)
  expect(isAllowed('lib/ops/route.ts', 'lib/nn/moe.ts')).toBe(false)
  expect(isAllowed('cli/main.ts', 'lib/doctor/index.ts')).toBe(true)
  expect(isAllowed('cli/main.ts', 'lib/doctor/other.ts')).toBe(false)
})

test('circles are found', () => {
  const arrows = ['ab', 'ac', 'cd', 'db', 'dc', 'ef', 'fg', 'ge'].map(([from, to]) => ({ from, to }))
  expect(circlesOf(arrows)).toEqual([
    ['c', 'd'],
    ['e', 'f', 'g'],
  ])
  expect(arrowsOf(root)).toContainEqual({ from: 'lib/ops/topk.ts', to: 'lib/tensor/tensor.ts', loads: true })
})
