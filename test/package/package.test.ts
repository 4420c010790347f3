import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join, posix } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { systemName } from '../../lib/runtime/addon.js'
import { addonOf, ownTarget, targets } from '../../scripts/targets.mjs'

/** The package holds what it needs to run and to be compiled from source, and nothing else. */

const root = fileURLToPath(new URL('../..', import.meta.url))
const lines = (command: string, ...args: string[]) =>
  execFileSync(command, args, { cwd: root, encoding: 'utf8' }).split('\n').filter(Boolean)

const tracked = (...folders: string[]) =>
  lines('git', 'ls-files', '--', ...folders).filter((name) => existsSync(join(root, name)))

const packed: string[] = JSON.parse(
  lines('npm', 'pack', '--dry-run', '--json', '--ignore-scripts').join('\n'),
)[0].files.map((file: { path: string }) => file.path)

const addons = Object.keys(targets).map(addonOf)

test('everything outside of prebuilds/ is on the list, and everything on the list is packed', () => {
  const bundles = ['cli', 'index', 'language-model', 'tfjs'].map((entry) => `dist/${entry}.js`)
  const chunks = packed.filter((name) => /^dist\/chunks\/[\w-]+\.js$/.test(name))
  const declarations = [...tracked('lib', 'language-model'), 'lib/runtime/native-ops.ts'].map(
    (name) => `dist/types/${name.replace(/\.ts$/, '.d.ts')}`,
  )
  const page = tracked('cli/ui/page').filter((name) => !name.endsWith('.ts'))
  const pageFiles = [...page.map((name) => posix.basename(name)), 'main.js'].map((name) => `dist/page/${name}`)
  const plots = ['iife.min.js', 'min.css', 'LICENSE'].map((name) => `dist/page/uPlot.${name}`)
  const single = [
    'package.json',
    'README.md',
    'CHANGELOG.md',
    'SECURITY.md',
    'LICENSE',
    'CMakeLists.txt',
    'scripts/install.cjs',
  ]
  const allowed = [
    ...single,
    ...tracked('native'),
    ...tracked('docs'),
    ...bundles,
    ...chunks,
    ...declarations,
    ...pageFiles,
    ...plots,
  ]
  expect(packed.filter((name) => !name.startsWith('prebuilds/')).sort()).toEqual(allowed.sort())
})

test('of prebuilds/, the addons alone are packed', () => {
  expect(packed.filter((name) => name.startsWith('prebuilds/') && !addons.includes(name))).toEqual([])
})

test('the package and its scripts have the same name for this system', () => {
  expect(ownTarget()).toBe(systemName())
  expect(Object.keys(targets)).toContain(systemName())
})

test('links between the packed pages lead to packed files', () => {
  const broken = packed
    .filter((name) => name.endsWith('.md'))
    .flatMap((page) =>
      [
        ...readFileSync(join(root, page), 'utf8')
          .replaceAll(/^```.*?^```$/gms, '')
          .matchAll(/\]\((?!https?:|#)([^)#\s]+)/g),
      ]
        .map(([, link]) => posix.join(posix.dirname(page), link))
        .filter((target) => !packed.includes(target))
        .map((target) => `${page}: ${target}`),
    )
  expect(broken).toEqual([])
})

/** A missing header would break the compilation elsewhere. */
test('the sources include no file that is not packed', () => {
  const includes = lines('git', 'grep', '-hoE', '#include "[^"]+"', '--', 'native').map(
    (line) => `native/${line.split('"')[1]}`,
  )
  expect(includes.length).toBeGreaterThan(50)
  expect([...new Set(includes)].filter((name) => !packed.includes(name))).toEqual([])
})

test('the release workflow pins its actions by commit', () => {
  const uses = lines('git', 'grep', '-hE', '^ *-? *uses:', '--', '.github/workflows')
  expect(uses.length).toBeGreaterThan(5)
  expect(uses.filter((line) => !/@[0-9a-f]{40} # v\d+\.\d+\.\d+$/.test(line))).toEqual([])
})

test.each(['st-moe', 'st-moe/language-model'])(
  'the classes of %s have their own names in the bundle',
  async (entry) => {
    const exported = Object.entries(await import(import.meta.resolve(entry)))
    const classes = exported.filter(([, value]) => typeof value === 'function' && /^class\b/.test(String(value)))
    expect(classes.length).toBeGreaterThan(3)
    expect(classes.map(([, value]) => (value as { name: string }).name)).toEqual(classes.map(([name]) => name))
  },
)
