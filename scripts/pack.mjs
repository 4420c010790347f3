// Packs the package into build/package/ from a fresh dist/, prints its size and fails above the limits.
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = path.join(root, 'build/package')
const cpuLimit = 2.5e6

const run = (command, ...args) => execFileSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 28 })

if (!existsSync(path.join(root, 'prebuilds'))) throw new Error('pack: there are no prebuilds: npm run prebuilds')
for (const stale of ['dist', 'build/package']) rmSync(path.join(root, stale), { recursive: true, force: true })
mkdirSync(folder, { recursive: true })
run('npm', 'run', 'build:ts')
const [packed] = JSON.parse(run('npm', 'pack', '--json', '--ignore-scripts', '--pack-destination', folder))

const names = packed.files.map(({ path: name }) => name)
const withoutPlugin = names.filter((name) => !/st_moe_cuda\.\w+$/.test(name))
const cpuSize = execFileSync('tar', ['-cz', ...withoutPlugin], { cwd: root, maxBuffer: 2 ** 28 }).length
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(2)} MB`
console.log(`build/package/${packed.filename}: ${names.length} files, ${megabytes(packed.size)}`)
console.log(`without the CUDA plugin: ${megabytes(cpuSize)} of at most ${megabytes(cpuLimit)}`)
for (const name of names.filter((name) => name.startsWith('prebuilds/'))) {
  console.log(`  ${name}: ${megabytes(readFileSync(path.join(root, name)).length)}`)
}
if (cpuSize > cpuLimit) process.exitCode = 1
