import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { compile, complaints, type End, expectPrinted, root, runModules, writeAll } from '../support/blocks.js'
import { examplesIn, exportsOf } from '../support/examples.js'

/**
 * Every example in a doc comment compiles under strict and runs, and prints what it says it prints. The names of the
 * package that it uses need no import.
 */

const folder = join(root, 'build', 'examples-test')
const compilerOptions = {
  strict: true,
  skipLibCheck: true,
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.NodeNext,
  types: ['node'],
}
const entries = [
  { name: 'st-moe', folder: 'lib' },
  { name: 'st-moe/language-model', folder: 'language-model' },
].map(({ name, folder }) => ({
  name,
  folder,
  exported: exportsOf(join(root, folder, 'index.ts'), compilerOptions),
}))
const exported = entries.flatMap((entry) => entry.exported)
const sources = entries.flatMap(({ folder }) =>
  readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => `${folder}/${name}`)
    .sort(),
)
const examples = sources
  .flatMap((name) => examplesIn(readFileSync(join(root, name), 'utf8'), name))
  .map((example) => ({ ...example, file: join(folder, example.name.replaceAll(/\W/g, '-'), 'example.mts') }))

/** With imports of the names of the package that the code uses; they take no line of their own. */
function withImport(code: string): string {
  const isUsed = (name: string): boolean => new RegExp(`(?<![.\\w])${name}\\b(?!:)`).test(code)
  const imports = entries.flatMap(({ name, exported }) => {
    const used = [...new Set(exported.map((entry) => entry.name.split('.')[0]))].filter(isUsed)
    return used.length > 0 ? [`import { ${used.join(', ')} } from '${name}'; `] : []
  })
  return `${imports.join('')}${code}\nexport {}\n`
}

let compiled = ''
let results: End[] = []

beforeAll(() => {
  writeAll(
    folder,
    examples.map(({ file, code }) => ({ file, code: withImport(code) })),
  )
  const files = examples.map(({ file }) => file)
  compiled = compile(files)
  results = runModules(files.map((file) => file.replace(/mts$/, 'mjs')))
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
