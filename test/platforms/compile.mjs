// Compiles the suite for any Node into build/platforms/suite: the sources and the tests as JavaScript, with the addons of
// prebuilds/ and vitest.mjs in the place of vitest.
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { exceptionsOf, libraryFiles } from '../support/projects.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const suite = path.join(root, 'build/platforms/suite')

/** The files that need nothing of vitest that vitest.mjs lacks, and no tools of Linux. */
export function suiteFiles() {
  const left = exceptionsOf('on other systems').map(({ file }) => file)
  const needsVi = (file) => /\bvi\b.*from 'vitest'/.test(readFileSync(path.join(root, file), 'utf8'))
  const programs = ['test/crash/out-of-memory', 'test/training/determinism', 'test/training/function-bits']
  const files = [...libraryFiles(), ...programs.map((name) => `${name}.test.ts`)]
  return files.filter((file) => !left.includes(file) && !needsVi(file))
}

/** Returns the folder. */
export async function compileSuite() {
  rmSync(suite, { recursive: true, force: true })
  mkdirSync(path.join(suite, 'node_modules/vitest'), { recursive: true })
  const common = { platform: 'node', format: 'esm', target: 'node20', outdir: suite, logLevel: 'warning' }
  const entryPoints = ['lib/**/*.ts', 'language-model/*.ts', 'cli/**/*.ts', 'test/support/*.ts', ...suiteFiles()]
  await build({ ...common, entryPoints: entryPoints.map((name) => path.join(root, name)), outbase: root })
  await build({
    ...common,
    entryPoints: [path.join(root, 'test/platforms/vitest.mjs')],
    bundle: true,
    outdir: path.join(suite, 'node_modules/vitest'),
  })
  const manifest = { name: 'vitest', type: 'module', exports: './vitest.js' }
  writeFileSync(path.join(suite, 'node_modules/vitest/package.json'), JSON.stringify(manifest))
  for (const name of [
    'package.json',
    'native/core',
    'scripts/native-ops.mjs',
    'prebuilds',
    'dist',
    'test/golden',
    'test/files',
    'test/children',
    'node_modules/node-gyp-build',
  ])
    cpSync(path.join(root, name), path.join(suite, name), { recursive: true, dereference: true })
  writeFileSync(
    path.join(suite, 'run.mjs'),
    `import { run } from 'vitest'\nprocess.exitCode = (await run(process.argv.slice(2).map((name) => new URL(name, import.meta.url).href))) ? 0 : 1\n`,
  )
  return suite
}
