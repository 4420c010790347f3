// Which branches of native/ no test takes. Builds the addon and the C++ tests in build-coverage with Clang's coverage of
// source, runs both suites on them, and prints for each file the branches never taken: the line, and which side of a
// condition. A branch counts as taken if any instance of a template or any instruction set takes it.
// test/native/not-taken.mjs lists those that no test here can take, each with a reason.
//
//   node scripts/coverage-native.mjs                  all of it
//   node scripts/coverage-native.mjs --report         only reads the counts of earlier runs again
//   node scripts/coverage-native.mjs --add -- ARG...  runs vitest with these arguments, adds its counts to those of earlier runs
//
// Exit code 1: a test failed, fewer than 90 % of the branches are taken that can be, or an entry of the list is stale.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import listed from '../test/native/not-taken.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const build = path.join(root, 'build-coverage')
const profiles = path.join(build, 'profiles')
const wanted = 0.9
const jobs = '2'

/** Runs a program; false if it fails. */
function run(program, args, env = {}) {
  console.log(`--- ${program} ${args.join(' ')}`)
  const { status } = spawnSync(program, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env } })
  return status === 0
}

function prepare() {
  const options = ['-DCMAKE_CXX_COMPILER=clang++', '-DCMAKE_BUILD_TYPE=Release']
  const parts = ['-DST_MOE_TESTS=ON', '-DST_MOE_COVERAGE=ON']
  const isBuilt =
    run('cmake', ['-S', '.', '-B', build, ...options, ...parts]) && run('cmake', ['--build', build, '--parallel', jobs])
  if (!isBuilt) throw new Error('the addon cannot be built')
  rmSync(profiles, { recursive: true, force: true })
}

// In threads, since the runner kills its forks before they could write their counts. Processes that tests kill write none.
const vitest = (args) => {
  rmSync(path.join(build, 'build'), { force: true })
  symlinkSync('.', path.join(build, 'build')) // the loader looks for <folder>/build/Release
  return run('node', ['node_modules/vitest/vitest.mjs', 'run', '--pool=threads', '--no-file-parallelism', ...args], {
    ST_MOE_PREBUILD: build,
    ...counting,
  })
}
const counting = { LLVM_PROFILE_FILE: path.join(profiles, '%m-%p.profraw') }
const cppTests = () => run('ctest', ['--test-dir', build, '--output-on-failure', '--parallel', jobs], counting)

/** What Clang's tools say of the files: all branches and segments, those of instances of templates one by one. */
function counts() {
  mkdirSync(profiles, { recursive: true })
  const all = path.join(profiles, 'all.profdata')
  const raw = readdirSync(profiles).filter((name) => name.endsWith('.profraw'))
  // The counts so far are one of the inputs: raw files are removed, as there are many.
  const inputs = [...raw, ...readdirSync(profiles).filter((name) => name === 'all.profdata')]
  if (raw.length > 0) {
    writeFileSync(path.join(profiles, 'inputs'), inputs.map((name) => path.join(profiles, name)).join('\n'))
    const from = ['-f', path.join(profiles, 'inputs'), '--failure-mode=all'] // one is cut short if its process was killed
    execFileSync('llvm-profdata', ['merge', '-sparse', ...from, '-o', `${all}.new`], { stdio: 'inherit' })
    execFileSync('mv', [`${all}.new`, all])
    for (const name of raw) rmSync(path.join(profiles, name))
  }
  const args = ['export', '-skip-functions', '-skip-expansions', `-instr-profile=${all}`]
  const text = execFileSync('llvm-cov', [...args, path.join(build, 'Release/st_moe.node')], { maxBuffer: 2 ** 30 })
  return JSON.parse(text).data[0].files
}

/** How often the code at a place ran. `segments`: [line, column, count], in order, each up to the next. */
function countAt(segments, line, column) {
  const before = segments.filter(([l, c]) => l < line || (l === line && c <= column))
  return before.at(-1)?.[2] ?? 0
}

/** The sides of all conditions of a file: { line, text, side, taken }. Constants of every instance have none. */
function sidesOf({ filename, branches, segments }) {
  const lines = readFileSync(filename, 'utf8').split('\n')
  const places = new Map()
  for (const [line, column, , end, yes, no] of branches) {
    const place = places.get(`${line}:${column}`) ?? { line, column, end, counts: [0, 0] }
    place.counts[0] += yes
    place.counts[1] += no
    places.set(`${line}:${column}`, place)
  }
  const isConstant = ({ line, column, counts: [yes, no] }) =>
    yes + no === 0 && (countAt(segments, line, column) > 0 || lines[line - 1].includes('if constexpr'))
  return [...places.values()]
    .filter((place) => !isConstant(place))
    .sort((a, b) => a.line - b.line || a.column - b.column)
    .flatMap(({ line, column, end, counts }) =>
      counts.map((count, i) => {
        const condition = lines[line - 1].slice(column - 1, end > column ? end - 1 : undefined)
        return { line, text: lines[line - 1].trim(), condition, side: i === 0 ? 'true' : 'false', taken: count > 0 }
      }),
    )
}

const flags =
  readFileSync('/proc/cpuinfo', 'utf8')
    .match(/^(flags|Features)\s*:.*/m)?.[0]
    .split(/\s+/) ?? []
/** Entries for processors that lack an instruction set say nothing where it is. */
const entries = listed.filter(({ lacks }) => !flags.includes(lacks))
const matches = (entry, file, { text, side }) =>
  entry.file === file && (!entry.text || entry.text === text) && (!entry.side || entry.side === side)

function report() {
  const rooms = new Map()
  const used = new Set()
  const open = []
  for (const file of counts()) {
    const name = path.relative(root, file.filename)
    const [, room] = /^native\/(core|cpu|mpi|binding)\//.exec(name) ?? []
    if (!room) continue
    const sum = rooms.get(room) ?? { all: 0, taken: 0, listed: 0 }
    rooms.set(room, sum)
    for (const side of sidesOf(file)) {
      sum.all++
      if (side.taken) {
        sum.taken++
        continue
      }
      const entry = entries.find((each) => matches(each, name, side))
      if (entry) {
        sum.listed++
        used.add(entry)
      } else open.push(`${name}:${side.line}: never ${side.side}: ${side.condition}    in: ${side.text}`)
    }
  }
  console.log(open.join('\n'))
  writeFileSync(path.join(build, 'never-taken.txt'), `${open.join('\n')}\n`)
  const native = { all: 0, taken: 0, listed: 0 }
  for (const sum of rooms.values()) for (const key of Object.keys(native)) native[key] += sum[key]
  for (const [room, sum] of [...rooms, ['native', native]]) {
    const rest = sum.all - sum.listed
    const percent = (n, of) => `${((100 * n) / of).toFixed(1)} %`
    console.log(
      `${room}: ${sum.taken} of ${sum.all} branches (${percent(sum.taken, sum.all)}), ${percent(sum.taken, rest)} without ${sum.listed} listed`,
    )
  }
  const stale = entries.filter((entry) => !used.has(entry) && !entry.sometimes)
  for (const { file, text } of stale)
    console.log(`stale: a test takes it, or it is gone: ${file}${text ? `: ${text}` : ''}`)
  return stale.length === 0 && native.taken >= wanted * (native.all - native.listed)
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { report: { type: 'boolean' }, add: { type: 'boolean' } },
})
let passed = true
if (!values.report && !values.add) {
  prepare()
  passed = cppTests()
  // The folders of the other programs call nothing that these do not.
  passed = vitest(['--project', 'library']) && passed
  passed = vitest(['--project', 'processes', 'test/crash/', 'test/distributed/', '.own.test.ts']) && passed
} else if (values.add) passed = vitest(positionals)
if (!report() || !passed) process.exitCode = 1
