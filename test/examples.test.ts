import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { compile, complaints, expectPrinted, root, writeAll } from './support/blocks.js'
import { examplesIn, exportsOf } from './support/examples.js'
import { patience } from './support/patience.js'

/**
 * Every example in a doc comment compiles under strict and runs, and prints what it says it prints. The names of the
 * package that it uses need no import.
 */

const folder = join(root, 'build', 'examples-test')
const exported = exportsOf(join(root, 'lib/index.ts'), {
  strict: true,
  skipLibCheck: true,
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.NodeNext,
  types: ['node'],
})
const importable = exported.map(({ name }) => name.split('.')[0])
const sources = readdirSync(join(root, 'lib'), { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .sort()
const examples = sources
  .flatMap((name) => examplesIn(readFileSync(join(root, 'lib', name), 'utf8'), `lib/${name}`))
  .map((example) => ({ ...example, file: join(folder, example.name.replaceAll(/\W/g, '-'), 'example.mts') }))

/** With an import of the names of the package that the code uses; the import takes no line of its own. */
function withImport(code: string): string {
  const used = [...new Set(importable)].filter((name) => new RegExp(`(?<![.\\w])${name}\\b(?!:)`).test(code))
  return `import { ${used.join(', ')} } from 'st-moe'; ${code}\nexport {}\n`
}

let compiled = ''
let results: { stdout: string; stderr: string }[] = []

beforeAll(() => {
  writeAll(
    folder,
    examples.map(({ file, code }) => ({ file, code: withImport(code) })),
  )
  const files = examples.map(({ file }) => file)
  compiled = compile(files)
  const runner = join(root, 'test/support/run-examples.mjs')
  const run = spawnSync(process.execPath, [runner, ...files.map((file) => file.replace(/mts$/, 'mjs'))], {
    cwd: root,
    encoding: 'utf8',
    timeout: patience,
  })
  if (run.status !== 0) throw new Error(`the examples end with ${run.signal ?? run.status}: ${run.stderr}`)
  results = JSON.parse(run.stdout)
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

test('the examples compile under strict', () => {
  expect(compiled).toBe('')
})

for (const [i, example] of examples.entries()) {
  test(example.name, () => {
    expect(example.language).toBe('ts')
    expect(complaints(results[i].stderr)).toBe('')
    expectPrinted(example, results[i].stdout)
  })
}

test('every export has a doc comment', () => {
  expect(exported.filter(({ comment }) => comment === '').map(({ name }) => name)).toEqual([])
})

test('every exported function and class has an example', () => {
  const ours = exported.filter(({ kind }) => kind === 'function' || kind === 'class')
  expect(ours.length).toBeGreaterThan(50)
  expect(ours.filter(({ hasExample }) => !hasExample).map(({ name }) => name)).toEqual([])
})
