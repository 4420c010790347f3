// Builds dist/ from lib, language-model and cli: one bundle of ES modules whose entries share chunks, so that there is one
// copy of every class; the page of runs, for browsers; and a declaration file for each module. No source maps: the bundle
// is readable, and they would be twice as large as it. Arguments are options of tsc.
import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { writeNativeOps } from './native-ops.mjs'
import { marked } from './sources.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const at = (...names) => path.join(root, ...names)
const common = { absWorkingDir: root, bundle: true, format: 'esm', charset: 'utf8', logLevel: 'warning' }

writeNativeOps()
rmSync(at('dist'), { recursive: true, force: true })

/** The files of a folder and those below it. */
const filesIn = (folder) =>
  readdirSync(at(folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name))

/**
 * A class that names itself comes out as `var Tensor = class _Tensor`, and would have that name. The option keepNames
 * would cost a call for each function that is created while the program runs.
 */
function ownNames(source) {
  const renamed = Array.from(source.matchAll(/^var (\w+) = class (_\1\d*)\b/gm))
  return renamed.reduce((text, [, name, inner]) => text.replaceAll(new RegExp(`\\b${inner}\\b`, 'g'), name), source)
}

await build({
  ...common,
  entryPoints: {
    index: 'lib/index.ts',
    'language-model': 'language-model/index.ts',
    tfjs: 'lib/tfjs/index.ts',
    cli: 'cli/bin.ts',
  },
  outdir: 'dist',
  chunkNames: 'chunks/[name]-[hash]',
  platform: 'node',
  target: 'node20.19',
  packages: 'external',
  splitting: true,
})
for (const file of filesIn('dist').filter((name) => name.endsWith('.js')))
  writeFileSync(file, ownNames(readFileSync(file, 'utf8')))
writeFileSync(at('dist/index.js'), marked(readFileSync(at('dist/index.js'), 'utf8')))
chmodSync(at('dist/cli.js'), 0o755)

const page = 'cli/ui/page'
await build({ ...common, entryPoints: [`${page}/main.ts`], outdir: 'dist/page', platform: 'browser', target: 'es2022' })
for (const name of readdirSync(at(page)).filter((name) => !name.endsWith('.ts')))
  copyFileSync(at(page, name), at('dist/page', name))
const plots = path.dirname(createRequire(import.meta.url).resolve('uplot/package.json'))
for (const name of ['uPlot.iife.min.js', 'uPlot.min.css'])
  copyFileSync(path.join(plots, 'dist', name), at('dist/page', name))
copyFileSync(path.join(plots, 'LICENSE'), at('dist/page/uPlot.LICENSE'))

const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc')
execFileSync(process.execPath, [tsc, '-p', 'tsconfig.json', ...process.argv.slice(2)], { cwd: root, stdio: 'inherit' })
