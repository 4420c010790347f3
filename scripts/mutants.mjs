// Mutation testing: applies one mutant at a time to a copy of the source and checks that a test fails. The mutants are
// in test/mutants/*.mjs, each with the tests that should catch it. Those run first; if they pass, the lanes release and
// simt of .ci/run follow. test/mutants/caught.json keeps which were caught, each with a hash of the mutant, its file and its
// tests. One that was caught counts as caught until it is run again, and is run again once one of those has changed: first
// those that never were caught, then those.
//
//   node scripts/mutants.mjs                      all of them
//   node scripts/mutants.mjs --only cpu,NAME      lists or single ones
//   node scripts/mutants.mjs --list               only checks that each can still be applied
//   node scripts/mutants.mjs --quick              without the lanes
//   node scripts/mutants.mjs --minutes 60         begins none after so many; the next run goes on
//
// Exit code 0: all that were run are caught; 1: one survived, does not compile, or cannot be applied.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { build, buildAll, runLanes, runTest } from './mutants/suite.mjs'
import { copyTree, hashOf, root, tree } from './mutants/tree.mjs'

const lists = path.join(root, 'test/mutants')
const resultFile = path.join(root, 'build/mutants/results.json')
const caughtFile = path.join(lists, 'caught.json')
const source = (name) => readFileSync(path.join(root, name), 'utf8')

/** All mutants, each with the name of its list. Throws where one is not complete or its text is not there just once. */
async function readMutants() {
  const mutants = []
  for (const file of readdirSync(lists)
    .filter((name) => name.endsWith('.mjs'))
    .sort()) {
    const { default: entries } = await import(path.join(lists, file))
    for (const entry of entries) mutants.push({ ...entry, list: path.basename(file, '.mjs') })
  }
  const wrong = mutants.flatMap((mutant) => complaints(mutant).map((text) => `${mutant.list}/${mutant.name}: ${text}`))
  const names = mutants.map(({ name }) => name)
  wrong.push(...names.filter((name, i) => names.indexOf(name) !== i).map((name) => `two mutants are named ${name}`))
  if (wrong.length > 0) throw new Error(wrong.join('\n'))
  return mutants
}

function complaints({ file, from, to, breaks, tests }) {
  if (!existsSync(path.join(root, file))) return [`there is no ${file}`]
  const count = source(file).split(from).length - 1
  const missing = tests.map((test) => test.replace(/^simt\//, '')).filter((test) => test.endsWith('.ts'))
  return [
    ...(count === 1 ? [] : [`${file} has ${count} times: ${from}`]),
    ...(from === to ? ['it changes nothing'] : []),
    ...(breaks ? [] : ['it does not say what it breaks']),
    ...(tests.length > 0 ? [] : ['no test is named']),
    ...missing.filter((test) => !existsSync(path.join(root, test))).map((test) => `there is no ${test}`),
  ]
}

/** Changes when the mutant, its file or a test named does. */
const keyOf = ({ file, from, to, tests }) => hashOf(file, from, to, ...sourcesOf(file, tests))

/** The file and its tests. */
function sourcesOf(file, tests) {
  const nativeTests = readdirSync(path.join(root, 'test/native'), { recursive: true }).map(String)
  const named = tests.flatMap((test) =>
    test.endsWith('.ts')
      ? [test.replace(/^simt\//, '')]
      : nativeTests.filter((name) => /\.(cc|h|cu)$/.test(name)).map((name) => path.join('test/native', name)),
  )
  return [file, ...named].map(source)
}

async function judge({ file, from, to, tests }, quick) {
  const original = source(file)
  const copy = path.join(tree, file)
  writeFileSync(
    copy,
    original.replace(from, () => to),
  )
  try {
    const refused = await build(file, tests)
    if (refused) return { result: 'does not compile', output: refused }
    for (const test of tests) {
      const { passed, by, output } = await runTest(test)
      if (!passed) return { result: 'caught', by, output }
    }
    if (quick) return { result: 'survived', by: 'the tests named' }
    const unbuilt = await build(file)
    if (unbuilt) return { result: 'does not compile', output: unbuilt }
    const { passed, by, output } = await runLanes()
    return passed ? { result: 'survived', by: 'release, simt' } : { result: 'caught', by, output }
  } finally {
    writeFileSync(copy, original)
  }
}

async function buildBaseline() {
  const failed = await buildAll()
  if (failed) throw new Error(`the copy cannot be built:\n${failed.slice(-4000)}`)
}

/** The tests that a mutant names must pass where nothing is changed: once for the files of its mutants as they are. */
async function baseline({ file, tests }, results) {
  for (const test of tests) {
    const key = hashOf(test, ...new Set(known.filter((each) => each.tests.includes(test)).map(keyOf)))
    if (results.baseline[test] === key) continue
    const refused = await build(file, tests) // of what a mutant before left in it
    if (refused) throw new Error(`the copy cannot be built:\n${refused.slice(-4000)}`)
    const { passed, output } = await runTest(test)
    if (!passed) throw new Error(`${test} fails without a mutant:\n${output.slice(-4000)}`)
    results.baseline[test] = key
    save(results)
  }
}

const readIf = (file, none) => (existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : none)
const load = () => readIf(resultFile, { baseline: {}, mutants: {} })
function save(results) {
  mkdirSync(path.dirname(resultFile), { recursive: true })
  writeFileSync(resultFile, JSON.stringify(results, null, 1))
}

/** The hash with which each mutant was caught, by name. */
const caught = readIf(caughtFile, {})
function record(mutant, result) {
  if (result === 'caught') caught[mutant.name] = keyOf(mutant)
  else delete caught[mutant.name]
  const names = known.map(({ name }) => name).filter((name) => caught[name])
  const sorted = Object.fromEntries(names.sort().map((name) => [name, caught[name]]))
  writeFileSync(caughtFile, `${JSON.stringify(sorted, null, 2)}\n`)
}

function summary(mutants) {
  const count = (list) => list.filter(wasCaught).length
  for (const list of [...new Set(mutants.map(({ list }) => list))]) {
    const own = mutants.filter((mutant) => mutant.list === list)
    console.log(`${list}: ${count(own)} of ${own.length} caught`)
  }
  const now = mutants.filter(isCurrent).length
  console.log(`${count(mutants)} of ${mutants.length} caught, ${now} of them with the files of today`)
}

const wasCaught = ({ name }) => name in caught
const isCurrent = (mutant) => caught[mutant.name] === keyOf(mutant)

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    list: { type: 'boolean' },
    quick: { type: 'boolean' },
    minutes: { type: 'string', default: 'Infinity' },
  },
})
const minutes = Number(values.minutes)
if (!(minutes > 0)) throw new Error(`--minutes must be a positive number, got ${values.minutes}`)
const only = values.only?.split(',')
const known = await readMutants()
const stray = only?.filter((word) => !known.some(({ name, list }) => name === word || list === word)) ?? []
if (stray.length > 0) throw new Error(`no mutant or list is named ${stray.join(', ')}`)
const mutants = known.filter(({ name, list }) => !only || only.includes(name) || only.includes(list))

if (values.list) {
  for (const { list, name, file, breaks } of mutants) console.log(`${list}/${name} (${file}): ${breaks}`)
  summary(mutants)
  console.log(`${mutants.length} mutants can be applied`)
} else {
  copyTree()
  const results = load()
  const never = mutants.filter((mutant) => !wasCaught(mutant))
  const stale = mutants.filter((mutant) => wasCaught(mutant) && !isCurrent(mutant))
  let escaped = 0
  for (const [i, mutant] of [...never, ...stale].entries()) {
    if (performance.now() > minutes * 60_000) break
    if (i === 0) await buildBaseline()
    await baseline(mutant, results)
    const from = performance.now()
    const { result, by, output } = await judge(mutant, values.quick)
    const seconds = Math.round((performance.now() - from) / 1000)
    results.mutants[mutant.name] = { result, by, output: output?.slice(-3000), seconds }
    save(results)
    record(mutant, result)
    if (result !== 'caught') escaped++
    console.log(`${result.padEnd(8)}  ${mutant.list}/${mutant.name}  ${by ?? ''}  ${seconds} s`)
  }
  summary(mutants)
  process.exitCode = escaped === 0 ? 0 : 1
}
