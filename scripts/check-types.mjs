// Compiles test/types/consumer.ts against the declarations in dist/, like a program outside this repository: strictest
// options, skipLibCheck off, with and without @types/node.
//
//   node scripts/check-types.mjs            with this repository's TypeScript, as the suite does
//   node scripts/check-types.mjs --all      with every supported version, which npm installs in build/types
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const versions = ['5.4', '5.6', '5.9', '6', '7']
const resolutions = [
  ['node16', 'node16'],
  ['nodenext', 'nodenext'],
  ['esnext', 'bundler'],
]
const root = fileURLToPath(new URL('..', import.meta.url))
const all = process.argv.includes('--all')
const folder = path.join(root, 'build/types')
const consumer = path.join(folder, 'consumer')

const run = (command, args, cwd) => spawnSync(command, args, { cwd, encoding: 'utf8' })

/** The compilers, by version. */
function compilers() {
  const own = createRequire(import.meta.url).resolve('typescript/package.json')
  if (!all) return [path.dirname(own)]
  mkdirSync(folder, { recursive: true })
  writeFileSync(path.join(folder, 'package.json'), '{ "private": true }')
  const names = versions.map((version) => `typescript-${version}@npm:typescript@${version}`)
  const { status, stderr } = run('npm', ['install', '--no-save', '--no-audit', '--no-fund', ...names], folder)
  if (status !== 0) throw new Error(stderr)
  return versions.map((version) => path.join(folder, 'node_modules', `typescript-${version}`))
}

/** What a user's folder holds: the package's declarations, and @types/node or not. */
function makeConsumer(nodeTypes) {
  const modules = path.join(consumer, 'node_modules')
  rmSync(consumer, { recursive: true, force: true })
  mkdirSync(path.join(modules, 'st-moe'), { recursive: true })
  cpSync(path.join(root, 'package.json'), path.join(modules, 'st-moe/package.json'))
  cpSync(path.join(root, 'dist'), path.join(modules, 'st-moe/dist'), { recursive: true })
  cpSync(path.join(root, 'test/types/consumer.ts'), path.join(consumer, 'consumer.ts'))
  writeFileSync(path.join(consumer, 'package.json'), '{ "private": true, "type": "module" }')
  if (nodeTypes)
    for (const name of ['@types/node', 'undici-types'])
      cpSync(path.join(root, 'node_modules', name), path.join(modules, name), { recursive: true })
}

function compile(compiler, [module, moduleResolution], nodeTypes) {
  const options = {
    target: 'es2022',
    lib: ['es2022'],
    module,
    moduleResolution,
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    noPropertyAccessFromIndexSignature: false,
    noEmit: true,
    skipLibCheck: false,
    types: nodeTypes ? ['node'] : [],
  }
  writeFileSync(path.join(consumer, 'tsconfig.json'), JSON.stringify({ compilerOptions: options, include: ['*.ts'] }))
  const { version } = createRequire(import.meta.url)(path.join(compiler, 'package.json'))
  const { status, stdout, stderr } = run(process.execPath, [path.join(compiler, 'bin/tsc'), '-p', '.'], consumer)
  const what = `TypeScript ${version}, module ${module}, ${nodeTypes ? 'with' : 'without'} @types/node`
  console.log(`${status === 0 ? 'ok' : 'FAILED'}: ${what}`)
  if (status !== 0) {
    console.log(stdout + stderr)
    process.exitCode = 1
  }
}

if (!existsSync(path.join(root, 'dist/types/lib/index.d.ts')))
  throw new Error('check-types: dist is not built: npm run build:ts')
const found = compilers()
for (const nodeTypes of [false, true]) {
  makeConsumer(nodeTypes)
  for (const compiler of found)
    for (const resolution of all ? resolutions : [resolutions[nodeTypes ? 2 : 1]])
      compile(compiler, resolution, nodeTypes)
}
