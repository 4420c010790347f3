// Runs at npm install: does nothing where a prebuilt addon loads, else compiles it, else says what is missing.
const { spawnSync } = require('node:child_process')
const path = require('node:path')

const root = path.join(__dirname, '..')

function prebuilt() {
  if (process.env.npm_config_build_from_source) return false
  process.env.PREBUILDS_ONLY = '1' // an earlier build of this folder may be stale: compile again
  try {
    require('node-gyp-build')(root)
    return true
  } catch {
    return false
  }
}

const has = (command, args = ['--version']) => spawnSync(command, args, { stdio: 'ignore' }).status === 0

function missing() {
  const lines = []
  const compiler = process.env.CXX || ['g++', 'clang++', 'c++'].find((name) => has(name))
  if (!compiler || !has(compiler)) lines.push('a C++ compiler: apt-get install g++   (or: dnf install gcc-c++)')
  if (!has('make') && !has('ninja')) lines.push('make:           apt-get install make   (or: dnf install make)')
  if (!has('cmake')) lines.push('CMake 3.18+:    apt-get install cmake   (or: dnf install cmake, pip install cmake)')
  return lines
}

function main() {
  if (prebuilt()) return 0
  const lacks = missing()
  if (lacks.length > 0) {
    const platform = `${process.platform}-${process.arch}`
    console.error(`st-moe: no prebuilt addon for ${platform}, and it cannot be compiled here. Missing:`)
    for (const line of lacks) console.error(`  - ${line}`)
    console.error('Install what is missing, then run: npm rebuild st-moe   (in a clone: npm install)')
    return 1
  }
  let cmakeJs
  try {
    cmakeJs = require.resolve('cmake-js/bin/cmake-js', { paths: [root] })
    require.resolve('node-addon-api/package.json', { paths: [root] })
  } catch {
    console.error(
      'st-moe: compiling needs cmake-js and node-addon-api: npm install cmake-js node-addon-api, then npm rebuild st-moe',
    )
    return 1
  }
  const parallel = String(Math.max(1, require('node:os').availableParallelism()))
  const result = spawnSync(process.execPath, [cmakeJs, 'compile', '--parallel', parallel], {
    cwd: root,
    stdio: 'inherit',
  })
  return result.status ?? 1
}

process.exitCode = main()
