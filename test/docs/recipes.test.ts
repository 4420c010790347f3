import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import { transformSync } from 'esbuild'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { MoE, manualSeed, SparseMoEBlock, saveSafetensorsSync, scope } from '../../lib/index.js'
import { blocksOf, root, writeAll } from '../support/blocks.js'
import { some } from '../support/numbers.js'
import { runProgram } from '../support/program.js'

/**
 * The training programs of docs/recipes and docs/tfjs.md continue after SIGKILL, again and again, with the bits of a run
 * that nothing interrupted, and those of docs/recipes end soon after SIGTERM. What they print is tested by docs.test.ts.
 */

const folder = join(root, 'build', 'recipes-test')
const moduleOf = (file: string): string => file.replace('.mts', '.mjs')
const killer = new URL('../children/kill-at.mjs', import.meta.url).href

/** What the programs are killed at, one run after another; SIGTERM is a request to save and end. */
const all = [
  { page: 'fine-tuning', kills: ['step 49', 'step 5 SIGTERM', 'step 51', 'rename 2', 'step 20'] },
  { page: 'autograd', kills: ['step 49', 'step 5 SIGTERM', 'step 51', 'rename 2', 'step 60'] },
  { page: 'autograd', program: 2, kills: ['step 49', 'step 51', 'step 5 SIGTERM', 'rename 2', 'step 60'] },
  { page: 'recommender', kills: ['step 5', 'step 30', 'step 20 SIGTERM', 'rename 3', 'step 190'] },
  { page: 'digits', kills: ['step 30', 'step 57', 'step 50 SIGTERM', 'rename 3', 'rename 2', 'step 150'] },
  { page: 'server', kills: ['step 49', 'step 75', 'step 30 SIGTERM', 'rename 3', 'step 120'] },
  { page: '../tfjs', kills: ['gradient 3', 'gradient 10', 'renameSync 2', 'gradient 7'] },
]
/** A program and two of its ends; before a release all. */
const recipes = some(all, 1).map(({ page, program = 1, kills }) => ({
  page,
  program,
  kills: some(kills, 2),
  file: join(folder, `${basename(page)}-${program}.mts`),
}))

beforeAll(() => {
  const files = recipes.map(({ page, program, file }) => {
    const blocks = blocksOf(readFileSync(join(root, `docs/recipes/${page}.md`), 'utf8'))
    const { code } = blocks.filter(({ language }) => language === 'ts')[program - 1]
    // docs.test.ts checks its types
    return { file: moduleOf(file), code: transformSync(code, { loader: 'ts', target: 'es2022' }).code }
  })
  writeAll(folder, files)
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** Runs a program in a folder of its own, killed at each of `kills` and then to its end: its output and its files. */
async function outcome(file: string, kills: readonly string[]) {
  const cwd = file.replace('.mts', kills.length > 0 ? '-killed' : '-whole')
  mkdirSync(cwd)
  pretrained(join(cwd, 'pretrained.safetensors'))
  const run = (KILL_AT: string) =>
    runProgram(['--import', killer, moduleOf(file)], { cwd, env: { ...process.env, KILL_AT } })
  for (const kill of kills) {
    const { signal, code, err } = await run(kill)
    const end = Date.now()
    expect(signal ?? code, `${kill} ${err}`).toBe(kill.endsWith('SIGTERM') ? 0 : 'SIGKILL')
    if (kill.endsWith('SIGTERM')) expectSoon(kill, err, end)
  }
  const { code, out, err } = await run('')
  expect(code, err).toBe(0)
  const files = Object.fromEntries(readdirSync(cwd).map((name) => [name, readFileSync(join(cwd, name), 'base64')]))
  return { out: out.replace(/\d+ answers/, 'answers'), files }
}

/** A loop takes no steps but those of some milliseconds, saves, and ends. */
function expectSoon(kill: string, err: string, end: number): void {
  const [, steps, at] = /(\d+) calls since the signal at (\d+)/.exec(err) ?? []
  expect(Number(steps), kill).toBeLessThanOrEqual(8)
  expect(end - Number(at), kill).toBeLessThan(5000)
}

/** What the Python of the page on fine-tuning writes. */
function pretrained(file: string): void {
  manualSeed(1)
  const moe = new MoE({ dim: 16, numExperts: 4, thresholdEval: 0 })
  using block = new SparseMoEBlock(moe, { addFfBefore: true, addFfAfter: true })
  scope(() => saveSafetensorsSync(file, block.stateDict()))
}

test.each(recipes)('program $program of $page, killed, ends with the same bits', async ({ file, kills }) => {
  const [killed, whole] = [await outcome(file, kills), await outcome(file, [])]
  expect(killed.out).toBe(whole.out)
  expect(Object.keys(killed.files)).toEqual(Object.keys(whole.files))
  const different = Object.keys(whole.files).filter((name) => killed.files[name] !== whole.files[name])
  expect(different).toEqual([])
})
