// Creates prebuilds/<platform>-<arch>/ with the addon, stripped and tagged with its C library, for every system of
// targets.mjs: with the Zig compiler of prebuilds-requirements.txt, from one Linux machine. Also the CUDA plugins
// that this machine can build. Compiles only what has changed since the last build of this tree.
//
//   node scripts/prebuilds.mjs [--no-cuda]              for all systems
//   node scripts/prebuilds.mjs --target NAME …          for some; with --tests only their C++ tests, in build/NAME-tests;
//                                                       with --bench only the benchmark's programs, in build/NAME-bench
//   node scripts/prebuilds.mjs --own [--missing]        for this machine, with its own compiler; only if there is none
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import prebuildify from 'prebuildify'
import { makeCuda12Toolkit } from './cuda12-toolkit.mjs'
import { emulators } from './emulators.mjs'
import { dropForeignCache } from './install.cjs'
import { nodeApiFunctions } from './node-api.mjs'
import { unpackWheels, zigFolder } from './python.mjs'
import { addonOf, ownTarget, pluginFiles, plugins, systemOf, targets } from './targets.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values } = parseArgs({
  options: {
    target: { type: 'string', multiple: true },
    own: { type: 'boolean' },
    missing: { type: 'boolean' },
    tests: { type: 'boolean' },
    bench: { type: 'boolean' },
    'no-cuda': { type: 'boolean' },
  },
})
const nvcc = process.env.CUDACXX ?? 'nvcc'
const jobs = String(availableParallelism())
const run = (command, ...args) => execFileSync(command, args, { cwd: root, stdio: 'inherit' })
const inRoot = (...names) => path.join(root, ...names)

/** With the compiler of this machine, in the tree that `npm install` has compiled. */
function compileHere() {
  const cmakeJs = createRequire(import.meta.url).resolve('cmake-js/bin/cmake-js')
  const toolset = process.platform === 'win32' ? ['--toolset', 'ClangCL'] : []
  dropForeignCache(inRoot('build'))
  // A tree that has built the C++ tests would put their emulated instruction set into the addon.
  if (existsSync(inRoot('build/CMakeCache.txt'))) run('cmake', '-DST_MOE_TESTS=OFF', inRoot('build'))
  run(process.execPath, cmakeJs, 'compile', '--parallel', jobs, ...toolset)
  return inRoot('build/Release/st_moe.node')
}

/**
 * A source with the functions of Node-API on Windows: each jumps to that of the executable, whatever its name is. An import
 * library would ask for node.exe, so the addon would load in no Electron and no single executable.
 */
function nodeApiSource(arch, folder) {
  const file = path.join(folder, 'node_api.cc')
  const jump = {
    x64: (pointer) => `jmp *${pointer}(%rip)`,
    arm64: (pointer) => `adrp x16, ${pointer}\\n ldr x16, [x16, :lo12:${pointer}]\\n br x16`,
  }[arch]
  const names = nodeApiFunctions()
  const text = [
    '#include <windows.h>',
    `extern "C" { void ${names.map((name) => `*to_${name}`).join(', ')}; }`,
    ...names.map((name) => `asm(".text\\n .globl ${name}\\n${name}: ${jump(`to_${name}`)}");`),
    '[[maybe_unused]] static const bool is_ready = [] {',
    '  const HMODULE library = GetModuleHandleW(L"libnode.dll");',
    '  const HMODULE node = library ? library : GetModuleHandleW(nullptr);',
    ...names.map((name) => `  to_${name} = reinterpret_cast<void*>(GetProcAddress(node, "${name}"));`),
    '  return true;',
    '}();',
    '',
  ].join('\n')
  if (!existsSync(file) || readFileSync(file, 'utf8') !== text) writeFileSync(file, text)
  return file
}

/** The addon, or `part`: its C++ tests, for ctest, or the benchmark's programs. */
function cross(target, part) {
  const { platform, arch } = systemOf(target)
  const zig = path.join(zigFolder(), 'zig')
  const build = inRoot('build', part ? `${target}-${part}` : target)
  mkdirSync(build, { recursive: true })
  dropForeignCache(build)
  const options = {
    CMAKE_TOOLCHAIN_FILE: inRoot('cmake/zig.cmake'),
    CMAKE_JS_SRC: platform === 'win32' ? nodeApiSource(arch, build) : '',
    CMAKE_CROSSCOMPILING_EMULATOR: emulators[target]?.command?.join(';') ?? '',
    ST_MOE_TARGET: targets[target],
    ST_MOE_ZIG: zig,
    ST_MOE_TESTS: part === 'tests' ? 'ON' : 'OFF',
    ST_MOE_BENCH: part === 'bench' ? 'ON' : 'OFF',
  }
  run('cmake', '-S', root, '-B', build, ...Object.entries(options).map(([name, value]) => `-D${name}=${value}`))
  run('cmake', '--build', build, '--parallel', jobs, ...(part ? [] : ['--target', 'st_moe']))
  return path.join(build, 'Release/st_moe.node')
}

/** prebuildify names and moves the file in <cwd>/build/Release; it gets a copy. */
async function put(target, addon) {
  const { platform, arch, libc } = systemOf(target)
  const staging = inRoot('build/staging', target)
  const release = path.join(staging, 'build/Release')
  rmSync(staging, { recursive: true, force: true })
  mkdirSync(release, { recursive: true })
  copyFileSync(addon, path.join(release, 'st_moe.node'))
  await promisify(prebuildify)({
    name: 'st-moe',
    platform,
    arch,
    libc,
    cwd: staging,
    out: root,
    napi: true,
    tagLibc: libc,
    strip: addon.startsWith(inRoot('build/Release')), // Zig has stripped its own
    shell: true,
    nodeGyp: `"${process.execPath}" -e 0 --`, // prebuildify would call node-gyp to compile, which is done already
    quiet: true,
  })
  if (!existsSync(inRoot(addonOf(target)))) throw new Error(`prebuilds: ${addonOf(target)} was not made`)
  console.log(`${addonOf(target)} is complete`)
}

/** The arguments of CMake that cross a plugin with the compiler of a prefix. */
function crossed(prefix) {
  const [processor] = prefix.split('-')
  return [
    '-DCMAKE_SYSTEM_NAME=Linux',
    `-DCMAKE_SYSTEM_PROCESSOR=${processor}`,
    `-DCMAKE_CXX_COMPILER=${prefix}-g++`,
    `-DCMAKE_CUDA_HOST_COMPILER=${prefix}-g++`,
  ]
}

/** CUDA 13's headers and static runtime of a processor, as wheels, for the compiler of this machine. */
function foreignRuntime(processor, build) {
  const wheels = inRoot(build, 'wheels')
  const requirements = readFileSync(inRoot('scripts/cuda-requirements.txt'), 'utf8')
  const wanted = requirements.match(/^nvidia-(cuda-(nvcc|crt|runtime|cccl)|nvtx)==(.*\\\n)*.*$/gm)
  unpackWheels(wheels, `manylinux2014_${processor}`, wanted)
  const cuda = path.join(wheels, 'nvidia/cu13')
  return [
    `-DCMAKE_CUDA_COMPILER=${nvcc}`,
    `-DCMAKE_CUDA_FLAGS=-I${cuda}/include -isystem ${cuda}/include/cccl -L${cuda}/lib`,
  ]
}

const runs = (command) => {
  const { error } = spawnSync(command, ['--version'])
  if (error) console.log(`prebuilds: no ${command}, so there is no CUDA plugin that needs it`)
  return !error
}

/** The plugins whose compilers this machine has, with a note about others. A compiler that fails is an error. */
function makePlugins() {
  if (process.platform !== 'linux' || !runs(nvcc)) return
  const here = `${process.platform}-${process.arch}`
  for (const [system, prefix] of Object.entries(plugins)) {
    const crosses = system !== here
    if (crosses && (own || !runs(`${prefix}-g++`))) continue
    const [processor] = prefix.split('-')
    for (const { file, cuda12 } of pluginFiles) {
      const build = path.join('build', (cuda12 ? 'cuda12' : 'cuda') + (crosses ? `-${system}` : ''))
      const options = ['-DST_MOE_CUDA=ON', ...(crosses ? crossed(prefix) : [])]
      if (cuda12) options.push('-DST_MOE_CUDA_12=ON', `-DCMAKE_CUDA_COMPILER=${makeCuda12Toolkit(nvcc, processor)}`)
      else if (crosses) options.push(...foreignRuntime(processor, build))
      dropForeignCache(inRoot(build))
      run('cmake', '-S', '.', '-B', build, ...options)
      run('cmake', '--build', build, '--parallel', jobs, '--target', 'st_moe_cuda')
      const prebuilt = inRoot('prebuilds', system, file)
      copyFileSync(inRoot(crosses ? `${build}/Release` : 'build/Release', file), prebuilt)
      run(crosses ? `${prefix}-strip` : 'strip', prebuilt)
    }
  }
}

const part = ['tests', 'bench'].find((name) => values[name])
const own = values.own || process.platform !== 'linux'
const chosen = values.target ?? (own ? [ownTarget()] : Object.keys(targets))
for (const target of chosen) {
  if (!(target in targets)) throw new Error(`prebuilds: ${target} is none of ${Object.keys(targets).join(', ')}`)
  if (values.missing && existsSync(inRoot(addonOf(target)))) continue
  if (part) cross(target, part)
  else await put(target, own ? compileHere() : cross(target))
}
if (!values['no-cuda'] && !part && (own || !values.target)) makePlugins()
