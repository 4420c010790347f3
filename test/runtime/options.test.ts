// Not on other systems: it reads sources that are not there.
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { expect, test } from 'vitest'
import { boolean, integer, number, pick, reader, unchecked } from '../../lib/runtime/options.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

test('a default stands for what is not given, and one option may depend on another', () => {
  const declared = {
    count: integer({ min: 1 }),
    half: integer({ min: 0, default: ({ count }) => Number(count) >> 1 }),
    top: integer({ min: 1, max: 8, atMost: 'count', default: 2 }),
  }
  expect(reader(declared)('f', { count: 6 })).toEqual({ count: 6, half: 3, top: 2 })
  expect(reader(declared)('f', { count: 6, half: undefined, top: 6 })).toEqual({ count: 6, half: 3, top: 6 })
  const read = (passed: unknown) => () => reader(declared)('f', passed)
  expect(read({})).toThrow('[f] count must be an integer of at least 1, got undefined')
  expect(read({ count: 1 })).toThrow('[f] top must be at most count = 1, got 2 (the default)')
  expect(read({ count: 1, top: 2 })).toThrow(/got 2$/)
  expect(read({ count: 10, top: 9 })).toThrow('[f] top must be an integer from 1 to 8, got 9')
})

test('several declarations are read together, and picked from again', () => {
  const [own, shared] = [{ a: number({ default: 1 }) }, { b: boolean({ default: true }) }]
  const values = reader(own, shared)('f', { b: false })
  expect(values).toEqual({ a: 1, b: false })
  expect(pick(values, shared)).toEqual({ b: false })
  expect(() => reader(own, shared)('f', { c: 1 })).toThrow('[f] unknown option "c"; did you mean \'a\'? Known: a, b')
})

test('a function that somebody passes is a value and not called', () => {
  const fn = () => 1
  expect(reader({ fn: unchecked<() => number>() })('f', { fn })).toEqual({ fn })
  expect(() => reader({ a: number({ default: 0 }) })('f', { a: fn })).toThrow('got a function')
})

test('the doc comment of an option tells its default', () => {
  const files = readdirSync(`${root}lib`, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts'))
  const found = files.flatMap((name) => {
    const source = readFileSync(`${root}lib/${name}`, 'utf8')
    const option = /\/\*\*((?:(?!\*\/).)*)\*\/\s*(\w+): \w+(?:<[^\n(]*>)?\([^\n]*\bdefault: ('?[\w.-]+'?)[^\n]*\),\n/gs
    return Array.from(source.matchAll(option), ([, doc, option, value]) => ({ option, value, doc }))
  })
  expect(found.length).toBeGreaterThan(20)
  expect(
    found.filter(({ doc, value }) => !new RegExp(`Default ${value.replaceAll('.', '\\.')}[.:\\s]`).test(doc)),
  ).toEqual([])
})

test('the declarations of the package show every option with its doc comment', () => {
  const program = ts.createProgram([`${root}dist/types/lib/index.d.ts`], { types: [] })
  const checker = program.getTypeChecker()
  const index = checker.getSymbolAtLocation(program.getSourceFile(`${root}dist/types/lib/index.d.ts`)!)!
  const types = checker.getExportsOfModule(index).filter(({ name }) => name.endsWith('Options'))
  const options = types.flatMap((type) =>
    checker
      .getDeclaredTypeOfSymbol(checker.getAliasedSymbol(type))
      .getProperties()
      .map((option) => ({
        option: `${type.name}.${option.name}`,
        doc: ts.displayPartsToString(option.getDocumentationComment(checker)),
      })),
  )
  expect(options.map(({ option }) => option)).toContain('MoEOptions.noiseMult')
  expect(options.filter(({ doc }) => doc === '')).toEqual([])
})
