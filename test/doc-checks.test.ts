import { expect, test } from 'vitest'
import { blocksOf, expectRun } from './support/blocks.js'
import { complaints } from './support/commands.js'

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
