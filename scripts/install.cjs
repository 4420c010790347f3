// Runs at npm install: does nothing if a prebuilt addon loads, else compiles the addon, else lists what is missing.
const { spawnSync } = require('node:child_process')
const { existsSync, readFileSync, realpathSync, rmSync } = require('node:fs')
const path = require('node:path')
const { pathToFileURL } = require('node:url')

const root = path.join(__dirname, '..')

// In its own process, because a damaged file may crash the loader. A build in this folder may be stale, so only
// prebuilds count.
function prebuilt() {
  const fromSource = (process.env.npm_config_build_from_source ?? '').split(',')
  if (fromSource.includes('true') || fromSource.includes('st-moe')) return false
  const loader = pathToFileURL(path.join(root, 'dist', 'index.js'))
  const load = ['--input-type=module', '-e', `(await import(${JSON.stringify(loader)})).getNumThreads()`]
  const { ST_MOE_ISA: _, ...others } = process.env // which kernels to use does not decide whether it loads
  const env = { ...others, PREBUILDS_ONLY: '1' }
  return spawnSync(process.execPath, load, { cwd: root, env, stdio: 'ignore' }).status === 0
}

// Windows looks for a program in the current folder first, which may contain foreign code.
const has = (command) => spawnSync(command, ['--version'], { cwd: root, stdio: 'ignore' }).status === 0

// Build tools come only from this package or from a node_modules folder that contains it: whoever can write there can
// write here too. Never from folders above the project or the current folder, which may contain foreign code.
const modules = [path.join(root, 'node_modules')]
for (let folder = root; folder !== path.dirname(folder); folder = path.dirname(folder)) {
  if (path.basename(folder) === 'node_modules') modules.push(folder)
}
const find = (file) => modules.map((folder) => path.join(folder, file)).find((candidate) => existsSync(candidate))

const windows = process.platform === 'win32'

/** Whether Visual Studio has Clang, without which neither Node's headers nor the kernels compile. */
function hasClang() {
  const vswhere = path.join(
    process.env['ProgramFiles(x86)'] ?? '',
    'Microsoft Visual Studio',
    'Installer',
    'vswhere.exe',
  )
  const clang = ['-products', '*', '-requires', 'Microsoft.VisualStudio.Component.VC.Llvm.Clang']
  const { stdout } = spawnSync(vswhere, [...clang, '-property', 'installationPath'], { cwd: root, encoding: 'utf8' })
  return Boolean(stdout?.trim())
}

function missingTools() {
  const cmake = windows
    ? 'winget install Kitware.CMake'
    : 'apt-get install cmake   (or: dnf install cmake, pip install cmake)'
  const lines = has('cmake') ? [] : [`CMake 3.18+:    ${cmake}`]
  if (windows) {
    const parts = '"Desktop development with C++" and "C++ Clang tools for Windows" (--toolset ClangCL)'
    if (!hasClang()) lines.unshift(`Clang:          Visual Studio or its Build Tools, with ${parts}`)
    return lines
  }
  if (!has('make') && !has('ninja')) lines.unshift('make:           apt-get install make   (or: dnf install make)')
  const compiler = process.env.CXX || ['g++', 'clang++', 'c++'].find(has) // CMake checks CXX, which may have arguments
  if (!compiler) lines.unshift('a C++ compiler: apt-get install g++   (or: dnf install gcc-c++)')
  return lines
}

/**
 * CMake refuses a build folder that was configured at another place, as in a clone that was moved or copied. Removes what
 * it knows of such a folder, so that it configures afresh.
 */
function dropForeignCache(build) {
  const file = path.join(build, 'CMakeCache.txt')
  if (!existsSync(file)) return
  const cache = readFileSync(file, 'utf8')
  const isOf = (name, folder) => {
    const [, found] = new RegExp(`^${name}:INTERNAL=(.*?)\\r?$`, 'm').exec(cache) ?? []
    return found !== undefined && existsSync(found) && realpathSync.native(found) === realpathSync.native(folder)
  }
  if (isOf('CMAKE_HOME_DIRECTORY', root) && isOf('CMAKE_CACHEFILE_DIR', build)) return
  console.error(`st-moe: ${build} was configured at another place: it is configured afresh`)
  for (const name of ['CMakeCache.txt', 'CMakeFiles']) rmSync(path.join(build, name), { recursive: true, force: true })
}

function main() {
  if (prebuilt()) return 0
  const cmakeJs = find('cmake-js/bin/cmake-js')
  const missing = missingTools()
  const packages = [!cmakeJs && 'cmake-js', !find('node-addon-api/package.json') && 'node-addon-api'].filter(Boolean)
  if (packages.length > 0) missing.push(`packages:       npm install ${packages.join(' ')}`)
  if (missing.length > 0) {
    const platform = `${process.platform}-${process.arch}`
    console.error(`st-moe: no prebuilt addon loads on ${platform}, and the addon cannot be compiled. Missing:`)
    for (const line of missing) console.error(`  - ${line}`)
    console.error(`Install these, then run: npx st-moe build`)
    return 1
  }
  dropForeignCache(path.join(root, 'build'))
  const toolset = windows ? ['--toolset', 'ClangCL'] : []
  const parallel = String(Math.max(1, require('node:os').availableParallelism()))
  const result = spawnSync(process.execPath, [cmakeJs, 'compile', '--parallel', parallel, ...toolset], {
    cwd: root,
    stdio: 'inherit',
  })
  return result.status ?? 1
}

module.exports = { dropForeignCache }
if (require.main === module) process.exitCode = main()
