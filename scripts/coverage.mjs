// The branches of lib, language-model and cli that no test takes, by V8's coverage of both projects of vitest.
//
//   node scripts/coverage.mjs                     runs the tests, then prints
//   node scripts/coverage.mjs --last              prints what the last run has found
//
// V8 counts in the processes of vitest alone: programs that a test starts run dist/ and count for nothing here.
// test/support/not-taken.mjs lists what may stay untaken, with reasons. Exit code 1: a test fails, lib has less than 95 % of
// its branches, or an entry of the list is taken or no longer there.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import allowed from '../test/support/not-taken.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const reports = path.join(root, 'build/coverage')
const report = path.join(reports, 'coverage-final.json')
const folders = ['lib', 'language-model', 'cli']
const least = 95

function runTests() {
  rmSync(report, { force: true })
  const include = folders.map((folder) => `--coverage.include=${folder}/**/*.ts`)
  const { status } = spawnSync(
    process.execPath,
    [
      'node_modules/vitest/vitest.mjs',
      'run',
      '--coverage.enabled',
      ...include,
      '--coverage.exclude=cli/ui/page/**', // runs in browsers
      '--coverage.reporter=json',
      `--coverage.reportsDirectory=${reports}`,
    ],
    { cwd: root, stdio: 'inherit' },
  )
  return status === 0 && existsSync(report)
}

/** The branches of a file: each with its line, the text of that line, and whether it is taken. */
function branchesOf(file, { branchMap, b: counts }) {
  const lines = readFileSync(file, 'utf8').split('\n')
  const name = path.relative(root, file).replaceAll(path.sep, '/')
  return Object.entries(branchMap).flatMap(([id, { locations, loc }]) =>
    counts[id].map((count, i) => {
      const line = locations[i]?.start?.line ?? loc.start.line // an `else` that is not written has no place of its own
      return { file: name, line, text: lines[line - 1].trim(), taken: count > 0 }
    }),
  )
}

const percent = (part, all) => (100 * part) / Math.max(1, all)
const isOf = (entry) => (branch) => branch.file === entry.file && branch.text === entry.text

if (!process.argv.includes('--last') && !runTests()) {
  console.error('the tests fail: see above')
  process.exit(1)
}
const branches = Object.entries(JSON.parse(readFileSync(report, 'utf8'))).flatMap(([file, found]) =>
  branchesOf(file, found),
)
const missed = branches.filter(({ file, taken }) => !taken && folders.some((folder) => file.startsWith(`${folder}/`)))
const open = missed.filter((branch) => !allowed.some((entry) => isOf(entry)(branch)))
const stale = allowed.filter((entry) => !missed.some(isOf(entry)))

for (const { file, line, text } of open) console.log(`${file}:${line}: ${text}`)
let failed = stale.length > 0
for (const { file, text } of stale) console.log(`taken now, or no longer there: ${file}: ${text}`)
for (const folder of folders) {
  const of = (list) => list.filter(({ file }) => file.startsWith(`${folder}/`)).length
  const [all, listed] = [of(branches), of(missed) - of(open)]
  const share = percent(all - of(open), all)
  const taken = percent(all - of(missed), all)
  console.log(
    `${folder}: ${taken.toFixed(1)} % of ${all} branches are taken, ${listed} are listed with a reason, ${of(open)} are not (${share.toFixed(1)} %)`,
  )
  if (folder === 'lib' && share < least) failed = true
}
process.exitCode = failed ? 1 : 0
