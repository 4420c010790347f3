// Creates prebuilds/<platform>-<arch>/ with the addon, stripped and tagged with its C library, and the CUDA plugin if
// it can be built. Compiles only what has changed since the last build of this tree.
//
//   node scripts/prebuilds.mjs [--no-cuda]         for this machine
//   node scripts/prebuilds.mjs --missing           only if there are none
//   node scripts/prebuilds.mjs --arch arm64        cross-compiled, with Debian's g++-12-aarch64-linux-gnu
import { execFileSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import prebuildify from 'prebuildify'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values } = parseArgs({
  options: { arch: { type: 'string' }, 'no-cuda': { type: 'boolean' }, missing: { type: 'boolean' } },
})
const arch = values.arch ?? process.arch
const target = `${process.platform}-${arch}`
const crossed = arch !== process.arch
const jobs = String(availableParallelism())
const cross = { 'linux-arm64': { toolchain: 'cmake/aarch64-linux-gnu.cmake', strip: 'aarch64-linux-gnu-strip' } }[
  target
]
if (values.missing && existsSync(path.join(root, 'prebuilds', target))) process.exit()
if (crossed && !cross) throw new Error(`prebuilds: ${target} cannot be built on ${process.platform}-${process.arch}`)

const run = (command, ...args) => execFileSync(command, args, { cwd: root, stdio: 'inherit' })

function compileAddon() {
  const build = crossed ? `build/${target}` : 'build'
  const cmakeJs = createRequire(import.meta.url).resolve('cmake-js/bin/cmake-js')
  const toolset = process.platform === 'win32' ? ['--toolset', 'ClangCL'] : []
  const extra = crossed
    ? ['--arch', arch, '--out', build, `--CDCMAKE_TOOLCHAIN_FILE=${path.join(root, cross.toolchain)}`]
    : []
  // A tree that has built the C++ tests would put their emulated instruction set into the addon.
  if (existsSync(path.join(root, build, 'CMakeCache.txt'))) run('cmake', '-DST_MOE_TESTS=OFF', path.join(root, build))
  run(process.execPath, cmakeJs, 'compile', '--parallel', jobs, ...toolset, ...extra)
  return path.join(root, build, 'Release/st_moe.node')
}

/** The plugin, or null with a note if this machine has no CUDA compiler. A compiler that fails is an error. */
function compilePlugin() {
  if (crossed || values['no-cuda'] || process.platform !== 'linux') return null
  try {
    execFileSync(process.env.CUDACXX ?? 'nvcc', ['--version'])
  } catch {
    console.log('prebuilds: no nvcc (in PATH or CUDACXX), so these prebuilds contain no CUDA plugin')
    return null
  }
  run('cmake', '-S', '.', '-B', 'build/cuda', '-DST_MOE_CUDA=ON')
  run('cmake', '--build', 'build/cuda', '--parallel', jobs, '--target', 'st_moe_cuda')
  return path.join(root, 'build/Release/libst_moe_cuda.so')
}

// prebuildify strips, tags and moves the files in <cwd>/build/Release; it gets copies.
const staging = path.join(root, 'build/staging', target)
const release = path.join(staging, 'build/Release')
rmSync(staging, { recursive: true, force: true })
rmSync(path.join(root, 'prebuilds', target), { recursive: true, force: true })
mkdirSync(release, { recursive: true })
for (const file of [compileAddon(), compilePlugin()]) {
  if (file && !existsSync(file)) throw new Error(`prebuilds: the build left no ${file}`)
  if (file) copyFileSync(file, path.join(release, path.basename(file)))
}

await promisify(prebuildify)({
  name: 'st-moe',
  arch,
  cwd: staging,
  out: root,
  napi: true,
  tagLibc: process.platform === 'linux',
  strip: true,
  stripBin: cross?.strip ?? 'strip',
  shell: true,
  nodeGyp: `"${process.execPath}" -e 0 --`, // prebuildify would call node-gyp to compile, which is done already
  quiet: true,
})
console.log(`prebuilds/${target} is complete`)
