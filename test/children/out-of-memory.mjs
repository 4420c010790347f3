// Every operation of memory/ with its first, second, third … allocation failing, until none is left to fail; under a
// sanitizer with every third one. Prints for each how many points failed, and what was wrong then: another error than
// OUT_OF_MEMORY, memory that is not given back, a changed parameter, gradient, state or generator, another result of the
// next call. Arguments: the addon that makes allocations fail, the device, and words that the names of the operations to
// be tried have in them.
import { MoeError, manualSeed, setNumThreads } from '../../dist/index.js'
import { emptyCaches, modes, stride, used, withFailing } from './memory/failing.mjs'
import { arrays, files, moves, steps } from './memory/models.mjs'
import { layers, made, ops } from './memory/ops.mjs'

const [device, ...words] = process.argv.slice(3)

/** One failure of a new world, then the same call without. Says whether there was an allocation to fail. */
async function attempt(make, n, forever, found) {
  const generator = manualSeed(7)
  const world = await make()
  const state = () => [...used(!world.copies), `${generator.seed} ${generator.step}`, world.state?.()].join('\n')
  emptyCaches()
  const before = state()
  const { seed, step } = generator
  const { value, error, fired } = await withFailing(n, forever, world.run)
  const problem = (text) => found.problems.push(`${found.name}, ${forever ? 'all from ' : ''}${n}: ${text}`)
  let again = value
  if (error) {
    if (!fired) throw error
    found.points++
    if (!(error instanceof MoeError && error.code === 'OUT_OF_MEMORY')) problem(String(error))
    // What a program does that calls several functions and tries again.
    if (world.samples) generator.setState({ seed, step })
    world.clear?.(world)
    const [was, is] = [before.split('\n'), state().split('\n')]
    const line = was.findIndex((text, i) => text !== is[i])
    if (line >= 0) problem(`${was[line].slice(0, 60)} before, ${is[line]?.slice(0, 60)} after`)
    try {
      again = await world.run()
    } catch (second) {
      problem(`the next call: ${second}`)
    }
  }
  if (again !== undefined || !error) {
    const result = `${world.bits(again)} ${generator.step}`
    found.result ??= result
    if (result !== found.result) problem('another result of the next call')
    world.free?.(again)
  }
  world.dispose?.()
  return fired
}

async function tried(name, make) {
  const found = { name, points: 0, problems: [] }
  const start = used().join()
  await attempt(make, Number.MAX_SAFE_INTEGER, true, found) // what it returns without a failure
  for (const forever of modes) for (let n = 1; await attempt(make, n, forever, found); n += stride);
  if (used().join() !== start) found.problems.push(`${name}: ${start} at first, ${used()} at the end`)
  return found
}

setNumThreads(1)
const report = []
const all = { ...made, ...ops, ...layers, ...steps, ...arrays, ...files, ...(device === 'cpu' ? {} : moves) }
for (const [name, make] of Object.entries(all)) {
  if (words.length > 0 && !words.some((word) => name.includes(word))) continue
  const { points, problems } = await tried(name, make)
  report.push({ name, points, wrong: problems.length, problems: problems.slice(0, 5) })
}
console.log(JSON.stringify(report))
