// Packs what a release publishes into build/package/, prints the sizes and fails above the limits: `st-moe` without
// addons, `@st-moe/<system>` with one, for each of prebuilds/, `st-moe-cuda`, if there is a plugin, and
// `@st-moe/mpich-<system>` with --mpich. `npm pack` alone makes an `st-moe` with the addons of prebuilds/ in it.
//
//   node scripts/pack.mjs [--all] [--mpich]
//
// --all: every system of targets.mjs must have an addon. --mpich: downloads MPICH from PyPI.
import { execFileSync } from 'node:child_process'
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { manifestsOf } from './manifests.mjs'
import { mpichFiles } from './mpich.mjs'
import { addonOf, mpichSystems, pluginFiles, plugins, systemOf, targets } from './targets.mjs'

const { values } = parseArgs({ options: { all: { type: 'boolean' }, mpich: { type: 'boolean' } } })
const root = fileURLToPath(new URL('..', import.meta.url))
const folder = path.join(root, 'build/package')
const cpuLimit = 3e6 // what a user without a GPU downloads
const run = (cwd, command, ...args) => execFileSync(command, args, { cwd, encoding: 'utf8', maxBuffer: 2 ** 28 })
const exists = (name) => existsSync(path.join(root, name))

const built = Object.keys(targets).filter((target) => exists(addonOf(target)))
const lacking = Object.keys(targets).filter((target) => !built.includes(target))
if (built.length === 0) throw new Error('pack: there are no prebuilds: npm run prebuilds')
if (values.all && lacking.length > 0) throw new Error(`pack: there are no prebuilds for ${lacking.join(', ')}`)

for (const stale of ['dist', 'build/package']) rmSync(path.join(root, stale), { recursive: true, force: true })
mkdirSync(folder, { recursive: true })
run(root, 'npm', 'run', 'build:ts')
const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
const pluginsOf = (name) => pluginFiles.map(({ file }) => file).filter((file) => exists(`prebuilds/${name}/${file}`))
const withPlugin = Object.keys(plugins).filter((name) => pluginsOf(name).length > 0)
const withMpich = values.mpich ? Object.keys(mpichSystems) : []
const manifests = manifestsOf(manifest, built, withPlugin, withMpich)
if (!manifest.repository) console.log('note: package.json names no repository, without which there is no provenance')

/** `files`: from → to, below the root and below the package. */
function pack(own, files) {
  const staged = path.join(folder, 'staged', own.name)
  for (const [from, to] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(staged, to)), { recursive: true })
    cpSync(path.join(root, from), path.join(staged, to), { recursive: true })
  }
  if (own.license === manifest.license) copyFileSync(path.join(root, 'LICENSE'), path.join(staged, 'LICENSE'))
  writeFileSync(path.join(staged, 'package.json'), `${JSON.stringify(own, null, 2)}\n`)
  const destination = ['--ignore-scripts', '--pack-destination', folder]
  const [{ filename, size }] = JSON.parse(run(staged, 'npm', 'pack', '--json', ...destination))
  console.log(`${filename}: ${megabytes(size)}`)
  return size
}
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(2)} MB`

const [listed] = JSON.parse(run(root, 'npm', 'pack', '--json', '--dry-run', '--ignore-scripts'))
const names = listed.files.map(({ path: name }) => name).filter((name) => !name.startsWith('prebuilds/'))
const main = pack(manifests.main, Object.fromEntries(names.map((name) => [name, name])))
const addons = manifests.addons.map((own, i) => {
  const { platform, arch } = systemOf(built[i])
  // Without the tag of its C library: this package is for no other.
  return pack(own, { [addonOf(built[i])]: `prebuilds/${platform}-${arch}/st-moe.node` })
})
if (manifests.cuda)
  pack(
    manifests.cuda,
    Object.fromEntries(
      withPlugin.flatMap((name) => pluginsOf(name).map((file) => [`prebuilds/${name}/${file}`, `${name}/${file}`])),
    ),
  )
for (const [i, own] of manifests.mpich.entries()) pack(own, mpichFiles(withMpich[i]))
rmSync(path.join(folder, 'staged'), { recursive: true })

console.log('to install these, all in one command: npm install build/package/*.tgz')
const download = main + Math.max(...addons)
console.log(`download without a GPU: ${megabytes(download)} of at most ${megabytes(cpuLimit)}`)
if (download > cpuLimit) process.exitCode = 1
