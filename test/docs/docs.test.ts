import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  type Block,
  blocksOf,
  compile,
  type End,
  expectEnd,
  expectRun,
  root,
  runModules,
  writeAll,
} from '../support/blocks.js'
import { complaints } from '../support/commands.js'
import { long } from '../support/numbers.js'
import { pythonFor, pythonPatience, referencePython } from '../support/python.js'
import { programRunner } from '../support/python-scripts.js'

/**
 * Every block of code in the README and the docs runs. The blocks of a page run in order in one folder, so that one may
 * read what an earlier one wrote. The rules are in docs/README.md, under "How these pages are tested".
 */

const folder = join(root, 'build', 'docs-test')
const extensions: Record<string, string> = { ts: '.mts', js: '.mjs', python: '.py' }
const known = [...Object.keys(extensions), 'sh']
/** The file that a block is an excerpt of, if it names one. */
const excerptOf = ({ flags }: Block): string | undefined => flags.find((flag) => flag.includes('/'))

const pages = [
  'README.md',
  ...readdirSync(join(root, 'docs'), { recursive: true, encoding: 'utf8' }).map((name) => `docs/${name}`),
]
  .filter((name) => name.endsWith('.md'))
  .sort()
  .map((page) => {
    const text = readFileSync(join(root, page), 'utf8')
    const place = join(folder, page.replaceAll(/\W/g, '-'))
    const blocks = blocksOf(text).map((block) => ({
      ...block,
      name: `${block.language} block of line ${block.line}`,
      file: join(place, `line-${block.line}${extensions[block.language]}`),
    }))
    return { page, text, place, tested: blocks.filter(({ language }) => language !== '') }
  })

const all = pages.flatMap(({ tested }) => tested)
const inFiles = all.filter((block) => block.language in extensions && !excerptOf(block))
const typed = inFiles.filter(({ language }) => language === 'ts').map(({ file }) => file)
let python: ReturnType<typeof referencePython> | undefined
let compiled = ''
const runPython = programRunner()

beforeAll(() => {
  writeAll(
    folder,
    inFiles.map(({ file, language, code }) => ({ file, code: language === 'ts' ? `${code}\nexport {}\n` : code })),
  )
  compiled = compile(typed)
  if (all.some(({ language }) => language === 'python')) python = referencePython()
}, pythonPatience)
afterAll(() => rmSync(folder, { recursive: true, force: true }))

test('the TypeScript blocks compile under strict', () => {
  expect(typed.length).toBeGreaterThan(5)
  expect(compiled).toBe('')
})

test('every block names a language that is tested here, or none: a diagram', () => {
  const unknown = pages.flatMap(({ page, tested }) =>
    tested
      .filter((block) => !known.includes(block.language) && !excerptOf(block))
      .map(({ line, language }) => `${page}:${line} ${language}`),
  )
  expect(unknown).toEqual([])
})

/** Without indentation, which the formatter of these pages changes. */
const flat = (text: string): string => text.replaceAll(/^ +/gm, '')

/** Recipes train for seconds each: they are compiled, and run before a release; until then they count as skipped. test/docs/recipes.test.ts runs one of them. */
const runs = (page: string): boolean => long || !page.startsWith('docs/recipes/')

const howTested = (block: Block): string => {
  if (excerptOf(block)) return `is in ${excerptOf(block)}`
  return block.language === 'sh' && !block.flags.includes('run') ? 'names what exists' : 'runs'
}

type Tested = (typeof pages)[number]['tested'][number]

const isModule = (block: Tested): boolean => ['ts', 'js'].includes(block.language) && !excerptOf(block)
const moduleOf = ({ file }: Tested): string => file.replace(/mts$/, 'mjs')

/** Whether a block prints or changes what belongs to a whole process, which it then has to itself. */
const isAlone = ({ code }: Tested): boolean => /\bmemory\(|\bWorker\b|\bprocess\.|\bsetDefaultDevice\b/.test(code)

/** The blocks of a page that run in one process: neighbours, so that all blocks run in order. */
function groupsOf(tested: readonly Tested[]): Tested[][] {
  const groups: Tested[][] = [[]]
  for (const block of tested.filter((block) => !excerptOf(block))) {
    if (isModule(block) && !isAlone(block)) groups.at(-1)!.push(block)
    else groups.push([])
  }
  return groups.filter((group) => group.length > 0)
}

describe.each(pages.filter(({ tested }) => tested.length > 0))('$page', ({ page, place, tested }) => {
  let withoutPython = false
  const groups = groupsOf(tested)
  const ends = new Map<Tested, End>()

  const run = (block: Tested) => {
    const { code, flags } = block
    const group = groups.find((blocks) => blocks.includes(block))
    if (group && !ends.has(block))
      for (const [i, end] of runModules(group.map(moduleOf)).entries()) ends.set(group[i], end)
    if (group) expectEnd(block, ends.get(block)!)
    else if (isModule(block)) expectRun(block, process.execPath, [moduleOf(block)], place)
    else {
      expect(complaints(code)).toEqual([])
      if (flags.includes('run')) expectRun(block, 'bash', ['-euo', 'pipefail', '-c', code], root)
    }
  }

  for (const block of tested) {
    test.skipIf(!runs(page))(`${block.name} ${howTested(block)}`, async (context) => {
      const excerpt = excerptOf(block)
      if (excerpt) return expect(flat(readFileSync(join(root, excerpt), 'utf8'))).toContain(flat(block.code))
      if (block.language === 'python' || withoutPython) {
        withoutPython = python !== undefined && 'reason' in python // what follows may read its files
        const program = pythonFor(context, python!)
        if (block.language === 'python') return expectEnd(block, await runPython(program, [block.file], place))
      }
      run(block)
    })
  }
})

describe.each(pages)('$page', ({ page, text }) => {
  test('links lead to files and headings that exist', () => {
    const anchor = (heading: string) =>
      heading
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N}\s_-]/gu, '')
        .trim()
        .replaceAll(' ', '-')
    const prose = text.replaceAll(/^```.*?^```$/gms, '')
    const targets = [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
      .map(([, target]) => target)
      .filter((target) => !/^https?:/.test(target))
    const broken = targets.filter((target) => {
      const [path, fragment] = target.split('#')
      const file = path === '' ? join(root, page) : resolve(root, dirname(page), path)
      if (!existsSync(file)) return true
      if (fragment === undefined) return false
      return ![...readFileSync(file, 'utf8').matchAll(/^#+ (.*)$/gm)].some(
        ([, heading]) => anchor(heading) === fragment,
      )
    })
    expect(broken).toEqual([])
  })

  test('commands within sentences name what exists', () => {
    const prose = text.replaceAll(/^```.*?^```$/gms, '')
    const commands = [...prose.matchAll(/`((?:npm |npx |scripts\/)[^`]*)`/g)].map(([, command]) => command)
    expect(commands.flatMap(complaints)).toEqual([])
  })
})

test('the picture of the slots is the output of its program', () => {
  const file = join(folder, 'capacity.svg')
  const { status, stderr } = spawnSync(process.execPath, ['--import', 'tsx', 'examples/draw-capacity.ts', file], {
    cwd: root,
    encoding: 'utf8',
  })
  expect(stderr).toBe('')
  expect(status).toBe(0)
  expect(readFileSync(file, 'utf8')).toBe(readFileSync(join(root, 'docs/images/capacity.svg'), 'utf8'))
})

test('every text of the troubleshooting page is that of an error which the code above it throws', () => {
  const { tested, text } = pages.find(({ page }) => page === 'docs/troubleshooting.md')!
  expect(tested.filter(({ flags, output }) => !flags.includes('throws') || output === null)).toEqual([])
  expect(tested).toHaveLength([...text.matchAll(/^### /gm)].length)
})

test('the index lists every page', () => {
  const index = readFileSync(join(root, 'docs/README.md'), 'utf8')
  const missing = pages.filter(
    ({ page }) =>
      page !== 'docs/README.md' && !index.includes(`](${page.replace('docs/', '').replace(/^README/, '../README')})`),
  )
  expect(missing.map(({ page }) => page)).toEqual([])
})
