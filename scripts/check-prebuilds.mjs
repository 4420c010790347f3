// The system requirements of prebuilds/: prints the newest symbol versions and the libraries that each file needs, and
// fails above the limits. For a build in an older system, pass lower limits:
//
//   node scripts/check-prebuilds.mjs [--glibc 2.34] [--glibcxx 3.4.29] [--cxxabi 1.3.13]
import { execFileSync } from 'node:child_process'
import { readdirSync, statSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const { values: limits } = parseArgs({
  options: {
    glibc: { type: 'string', default: '2.34' },
    glibcxx: { type: 'string', default: '3.4.29' },
    cxxabi: { type: 'string', default: '1.3.13' },
  },
})
const prebuilds = fileURLToPath(new URL('../prebuilds', import.meta.url))
const pluginLimit = 40e6

/** Everything else must be linked in: a sanitizer, cuBLAS or libnode here would not load elsewhere. */
const system = /^(libc|libm|libstdc\+\+|libgcc_s|libpthread|libdl|librt|ld-linux[\w-]*)\.so\.\d+$/

const triples = { x64: 'x86_64-linux-gnu', arm64: 'aarch64-linux-gnu' }

function objdump(arch, ...args) {
  const own = arch === process.arch ? 'objdump' : `${triples[arch]}-objdump`
  return execFileSync(own, args, { encoding: 'utf8', maxBuffer: 2 ** 28 })
}

const newer = (a, b) => a.localeCompare(b, 'en', { numeric: true }) > 0

/** The newest version of each family that the file's symbols name, such as { glibc: '2.34' }. */
function floor(arch, file) {
  const newest = {}
  for (const [, family, version] of objdump(arch, '-T', file).matchAll(/\b(GLIBC|GLIBCXX|CXXABI)_([\d.]+)/g)) {
    const name = family.toLowerCase()
    if (!newest[name] || newer(version, newest[name])) newest[name] = version
  }
  return newest
}

function faults(target, name) {
  const file = path.join(prebuilds, target, name)
  const arch = target.split('-')[1]
  const { size } = statSync(file)
  const versions = floor(arch, file)
  const needed = [...objdump(arch, '-p', file).matchAll(/NEEDED\s+(\S+)/g)].map(([, library]) => library)
  const shown = Object.entries(versions).map(([family, version]) => `${family} ${version}`)
  console.log(`${target}/${name}: ${(size / 1e6).toFixed(2)} MB, needs ${shown.join(', ')}; ${needed.join(' ')}`)

  const found = Object.entries(versions)
    .filter(([family, version]) => newer(version, limits[family]))
    .map(([family, version]) => `needs ${family} ${version}, the limit is ${limits[family]}`)
  for (const library of needed) if (!system.test(library)) found.push(`needs ${library}`)
  if (name.endsWith('.node') && !needed.some((library) => library.startsWith('libstdc++'))) {
    found.push('has libstdc++ linked in, which raises the glibc that it needs')
  }
  if (objdump(arch, '-h', file).includes(' .debug_') || !/^no symbols$/m.test(objdump(arch, '-t', file))) {
    found.push('is not stripped')
  }
  if (!name.endsWith('.node') && size > pluginLimit) found.push(`has ${size} bytes, the limit is ${pluginLimit}`)
  return found
}

const targets = readdirSync(prebuilds).filter((target) => target.startsWith('linux-'))
if (targets.length === 0) throw new Error('check-prebuilds: there are none for Linux: npm run prebuilds makes them')
for (const target of targets) {
  for (const name of readdirSync(path.join(prebuilds, target))) {
    for (const fault of faults(target, name)) {
      console.error(`${target}/${name} ${fault}`)
      process.exitCode = 1
    }
  }
}
