// Builds the copy and runs tests in it. A test is named as in the lists of test/mutants: a file of vitest or a test of
// ctest; with `simt/` before it, on the emulator of the CUDA backend; `lane/` and a lane of .ci/run.
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { tree } from './tree.mjs'

const minute = 60_000
const jobs = String(os.availableParallelism())
const hasCache = process.env.PATH.split(path.delimiter).some((folder) => existsSync(path.join(folder, 'ccache')))
const env = {
  ...(hasCache && { CMAKE_CXX_COMPILER_LAUNCHER: 'ccache', CCACHE_BASEDIR: tree, CCACHE_NOHASHDIR: '1' }),
  ...process.env,
  CI: '1',
}
for (const name of ['ST_MOE_CUDA_LIBRARY', 'ST_MOE_TEST_DEVICE']) delete env[name]
const onEmulator = { ST_MOE_CUDA_LIBRARY: path.join(tree, 'build/libst_moe_simt.so'), ST_MOE_TEST_DEVICE: 'cuda' }

let running = null
const kill = () => running && process.kill(-running.pid, 'SIGKILL')
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'])
  process.once(signal, () => {
    kill()
    process.exit(130)
  })

/** Runs a command in the copy; what it started ends with it. */
async function run(limit, extra, command, ...args) {
  const child = spawn(command, args, {
    cwd: tree,
    env: { ...env, ...extra },
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  running = child
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      output = (output + text).slice(-200_000)
    })
  }
  let late = false
  const timer = setTimeout(() => {
    late = true
    kill()
  }, limit)
  const code = await new Promise((resolve, reject) => child.once('error', reject).once('close', resolve))
  clearTimeout(timer)
  running = null
  return { passed: code === 0, late, output }
}

async function all(commands) {
  for (const command of commands) {
    const result = await run(30 * minute, {}, ...command)
    if (!result.passed) return result.output
  }
  return null
}

const builds = {
  // What a mutant leaves unused is no mistake of it.
  typescript: [['node', 'scripts/build.mjs', '--noUnusedLocals', 'false', '--noUnusedParameters', 'false']],
  addon: [['cmake', '--build', 'build', '--parallel', jobs]],
  emulator: [['cmake', '--build', 'build/simt', '--parallel', jobs]],
}

/** What has to be built after a change of `file`, for the tests named; of everything where none are. */
function builtFrom(file, tests) {
  if (/^(lib|language-model|cli)\//.test(file)) return ['typescript']
  if (file.startsWith('native/cuda/')) return ['emulator']
  if (!tests) return ['addon', 'emulator']
  const onCuda = tests.some((test) => test.startsWith('simt/'))
  const onCpu = tests.some((test) => !test.startsWith('simt/') || test.endsWith('.ts'))
  return [...(onCpu ? ['addon'] : []), ...(onCuda ? ['emulator'] : [])]
}

/** What still has a mutant in it, made of a file that is back as it was. */
let stale = []

/** Builds after a change of `file`. Null, or what the compiler said. */
export async function build(file, tests) {
  const own = builtFrom(file, tests)
  const due = Object.keys(builds).filter((what) => own.includes(what) || stale.includes(what))
  stale = due
  const refused = await all(due.flatMap((what) => builds[what]))
  if (!refused) stale = own
  return refused
}

export const buildAll = () =>
  all([
    ['npm', 'run', '--silent', 'build:ts'],
    ['npx', 'cmake-js', 'compile'],
    ['cmake', '-S', '.', '-B', 'build', '-DST_MOE_TESTS=ON', '-DST_MOE_BENCH=ON'],
    ...builds.addon,
    ['cmake', '-S', 'test/native/simt', '-B', 'build/simt', '-DST_MOE_TESTS=ON', '-DST_MOE_OP_TESTS=ON'],
    ...builds.emulator,
  ])

/** Runs one test; passed, or what says that it did not. */
export async function runTest(test) {
  if (test.startsWith('lane/')) return runLane(test.slice('lane/'.length))
  const simt = test.startsWith('simt/')
  const name = simt ? test.slice('simt/'.length) : test
  const isVitest = name.endsWith('.ts')
  const folder = simt ? 'build/simt' : 'build'
  const command = isVitest
    ? ['node', 'node_modules/vitest/vitest.mjs', 'run', '--bail=1', name]
    : ['ctest', '--test-dir', folder, '--output-on-failure', '--no-tests=error', '-R', `^${name}$`]
  const { passed, late, output } = await run(10 * minute, simt && isVitest ? onEmulator : {}, ...command)
  return { passed, by: late ? `${test} (did not end)` : test, output }
}

async function runLane(lane) {
  const { passed, late, output } = await run(60 * minute, { CI_LANES: lane, CI_INSTALLED: '1' }, '.ci/run')
  const failed = /FAIL\s+(\S+)/.exec(output)?.[1] ?? /- (\S+) \((?:Failed|Timeout|SEGFAULT)/.exec(output)?.[1]
  return { passed, by: late ? `${lane} (did not end)` : `${lane}: ${failed ?? 'failed'}`, output }
}

/** Runs the lanes of .ci/run that most mutants can be caught in. */
export async function runLanes() {
  for (const lane of ['release', 'simt']) {
    const result = await runLane(lane)
    if (!result.passed) return result
  }
  return { passed: true }
}
