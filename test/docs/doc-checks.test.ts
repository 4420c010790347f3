import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { blocksOf, expectRun } from '../support/blocks.js'
import { complaints } from '../support/commands.js'
import { examplesIn, exportsOf } from '../support/examples.js'

// The checks of the documentation find what is wrong with it.

const run = (markdown: string) => {
  const [block] = blocksOf(markdown)
  expectRun(block, process.execPath, ['--input-type=module', '-e', block.code], process.cwd())
}
const js = (code: string, info = 'js') => `\`\`\`${info}\n${code}\n\`\`\`\n`

test('a promise in a comment must be kept', () => {
  run(js('console.log(1 + 1) // → 2'))
  expect(() => run(js('console.log(1 + 1) // → 3'))).toThrow()
  expect(() => run(js('1 + 1 // → 2'))).toThrow()
})

test('the text below a block is all that it prints', () => {
  run(`${js("console.log('a 17 b')")}\n\`\`\`text\na … b\n\`\`\`\n`)
  expect(() => run(`${js("console.log('a\\nb')")}\`\`\`text\na\n\`\`\`\n`)).toThrow()
})

test('a block that throws must throw the text below it', () => {
  const failing = js("throw new Error('[op] x')", 'js throws')
  run(`${failing}\n\`\`\`text\n[op] x\n\`\`\`\n`)
  expect(() => run(`${failing}\n\`\`\`text\n[op] y\n\`\`\`\n`)).toThrow()
  expect(() => run(failing)).toThrow()
  expect(() => run(`${js('1', 'js throws')}\n\`\`\`text\nanything\n\`\`\`\n`)).toThrow()
})

test('a block without `throws` must end well and in silence', () => {
  expect(() => run(js("throw new Error('no')"))).toThrow()
  expect(() => run(js("console.error('warning')"))).toThrow()
})

test('commands must exist', () => {
  expect(complaints('npm run lint && npx tsc -p test/tsconfig.json # why\nA=1 scripts/gpu-check \\\n  out')).toEqual([])
  for (const wrong of ['npm run no-such', 'npm no-such', 'npx no-such', 'no-such', 'node test/no-such.ts']) {
    expect(complaints(wrong)).toHaveLength(1)
  }
})

test('examples of doc comments are found, with the line of the fence', () => {
  const source = [
    'const a = 1',
    '/**',
    ' * Text.',
    ' *',
    ' * @example',
    ' * ```ts',
    ' * if (a)',
    ' *   console.log(a)',
    ' * ```',
    ' *',
    ' * @returns nothing',
    ' */',
    'const b = 2',
  ].join('\n')
  expect(examplesIn(source, 'x.ts')).toEqual([
    expect.objectContaining({ name: 'x.ts:6', language: 'ts', code: 'if (a)\n  console.log(a)' }),
  ])
  expect(() => examplesIn('\n/** @example f() */', 'x.ts')).toThrow('x.ts:2: an example is a block of code')
})

test('what is exported without a comment or an example is found', () => {
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-exports-'))
  try {
    const file = join(folder, 'index.ts')
    const inner = '/** Text. */\nexport const f = () => 1\nexport class C {}\nexport type T = 1\n'
    writeFileSync(join(folder, 'inner.ts'), inner)
    writeFileSync(file, "/** Text.\n@example f() */\nexport function g() {}\nexport * as inner from '../inner.js'\n")
    const found = exportsOf(file, { types: [] }).map(({ name, kind, comment, hasExample }) =>
      [name, kind, comment, hasExample].join(),
    )
    const expected = [
      'g,function,Text.,true',
      'inner.f,function,Text.,false',
      'inner.C,class,,false',
      'inner.T,type,,false',
    ]
    expect(found.sort()).toEqual(expected.sort())
  } finally {
    rmSync(folder, { recursive: true })
  }
})
