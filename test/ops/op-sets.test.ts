// Not on other systems: it reads sources that are not there.
import { readdirSync, readFileSync } from 'node:fs'
import { basename } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { getNumThreads, Tensor } from '../../lib/index.js'
import { native } from '../../lib/runtime/native.js'
import { declaredOps } from '../../scripts/native-ops.mjs'

// An op has one name everywhere, and this test says where it is missing. native/core/ops.inc declares it.

const root = fileURLToPath(new URL('../..', import.meta.url))
const text = (path: string): string => readFileSync(root + path, 'utf8')
const list = (folder: string, extension: string): string[] =>
  readdirSync(root + folder)
    .filter((name) => name.endsWith(extension))
    .map((name) => basename(name, extension))
const tsFiles = readdirSync(`${root}lib`, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .map((name) => `lib/${name}`)
const all = (source: string, pattern: RegExp): string[] => Array.from(source.matchAll(pattern), (match) => match[1])
const sorted = (names: Iterable<string>): string[] => [...new Set(names)].sort()

const kebab = (name: string): string => name.replaceAll('_', '-')
const forward = (name: string): string => name.replace(/_backward$/, '')

const ops = declaredOps()
const table = ops.map(({ name }) => name)
const bindingSource = list('native/binding', '.cc')
  .map((name) => text(`native/binding/${name}.cc`))
  .join('\n')
/** What the binding has by hand, and the ops that it takes from their declarations. */
const byHand = all(bindingSource, /\{"(\w+)", \w+, Order::\w+\}/g)
const entries = [...byHand, ...ops.filter((op) => !op.byHand).map(({ jsName }) => jsName)]

/** Ops that the binding offers under other names. */
const bindingNames: Record<string, string[]> = { strided_copy: ['stridedRead', 'stridedWrite'] }
/** The optimizers, which lib/optim has. */
const optimizers = all(text('native/core/ops/optimizers.inc'), /FACTORS\(\w+, (\w+)/g)
/** Ops without a file in lib/ops: creation, what the tape and other ops use, and the optimizers. */
const withoutFile = [
  'full',
  'random',
  'randperm',
  'scale',
  'norm',
  'clip_norm',
  'token_mask',
  'plan_slots',
  'plan_sorted',
  ...optimizers,
]
const fileNames: Record<string, string> = { convert: 'cast', strided_copy: 'strided' }
/** Files of lib/ops without a native op of their own. */
const withoutOp = [
  'activation',
  'collectives',
  'compare',
  'copy',
  'index',
  'quantize',
  'losses',
  'plan',
  'reshape',
  'route-options',
  'routing',
  'rows',
]

/** Ops between processes, which GPUs lack. */
const collectives = ops.filter(({ args }) => args.some(({ macro }) => macro === 'GROUP')).map(({ name }) => name)

const compiledOnce = /^set\(ST_MOE_CPU_BASE (.*)\)$/m.exec(text('CMakeLists.txt'))![1].split(' ')

/** Files of a backend that hold no op of their name. */
const backends = [
  {
    folder: 'cpu',
    extension: '.cc',
    lacks: [] as string[],
    helpers: [...compiledOnce, 'gemm', 'table'],
  },
  {
    folder: 'cuda',
    extension: '.cu',
    lacks: collectives,
    helpers: ['blas', 'blas_library', 'capture', 'device_fault', 'grouped', 'memory', 'plugin', 'stream', 'table'],
  },
]

test.each(backends)(
  'each op of native/$folder is in the file of its name, or a backward in that of its forward',
  ({ folder, extension, lacks, helpers }) => {
    const files = list(`native/${folder}`, extension)
    const optimizers = all(text('native/core/ops/optimizers.inc'), /^FACTORS\(\w+, (\w+)/gm)
    for (const name of table.filter((name) => ![...optimizers, ...lacks].includes(name))) {
      const homes = files.filter((file) =>
        new RegExp(`^void ${name}\\(const Context& ?\\w*, const [\\w<>]+& ?\\w*\\) \\{`, 'm').test(
          text(`native/${folder}/${file}${extension}`),
        ),
      )
      expect(homes, name).toHaveLength(1)
      expect([name, forward(name)], `${name} is defined in ${homes[0]}${extension}`).toContain(homes[0])
    }
    expect(files.filter((file) => ![...helpers, 'optimizers', ...table].includes(file))).toEqual([])
  },
)

test('each op, an optimizer too, has cases and plain loops in test/native/cases', () => {
  const cases = list('test/native/cases', '.cc').map((name) => text(`test/native/cases/${name}.cc`))
  const named = new Set(all(cases.join('\n'), /\b(\w+)Args\b/g))
  const pascal = (name: string): string => name.replaceAll(/(?:^|_)(\w)/g, (_, letter: string) => letter.toUpperCase())
  expect(table.filter((name) => !named.has(pascal(name)))).toEqual([])
})

test('ops whose call is written by hand have it', () => {
  const hand = ops.filter((op) => op.byHand)
  expect(sorted(all(bindingSource, /&OpTable::(\w+)/g))).toEqual(sorted(hand.map(({ name }) => name)))
  expect(hand.flatMap((op) => bindingNames[op.name] ?? [op.jsName]).filter((name) => !byHand.includes(name))).toEqual(
    [],
  )
})

test('the interface in lib/runtime/native.ts, the entries of the binding and the loaded addon agree', () => {
  const source = text('lib/runtime/native.ts')
  const body = source.slice(source.indexOf('interface Addon {'), source.indexOf('\n}\n'))
  expect(sorted(all(body, /^ {2}(\w+)\(/gm))).toEqual(sorted(byHand))
  getNumThreads() // which loads the addon
  expect(sorted(Object.keys(native))).toEqual(sorted(entries))
})

test('every binding entry is used in lib', () => {
  const sources = tsFiles.map(text)
  const source = sources.join('\n')
  const declared = all(source, /declaredOptimizer\('(\w+)'/g).map((name) => name.toLowerCase())
  const used = new Set([...all(source, /(?:native|functions)\.(\w+)\(/g), ...declared])
  expect(entries.filter((name) => !used.has(name))).toEqual([])
})

test('every op has its file in lib/ops', () => {
  const expected = table.map(forward).filter((name) => !withoutFile.includes(name))
  const files = list('lib/ops', '.ts').filter((name) => !withoutOp.includes(name))
  expect(sorted(files)).toEqual(sorted(expected.map((name) => fileNames[name] ?? kebab(name))))
})

test('a method that a file of lib declares for Tensor is registered there', () => {
  const methods = tsFiles.flatMap((file) => {
    const [, block = ''] = /^declare module '[./]+(?:tensor\/)?tensor\.js' \{\n(.*?)^\}/ms.exec(text(file)) ?? []
    return all(block, /^ {4}(\w+)[(<]/gm)
  })
  expect(methods.length).toBeGreaterThan(25)
  expect(methods.filter((name) => !Object.hasOwn(Tensor.prototype, name))).toEqual([])
})
