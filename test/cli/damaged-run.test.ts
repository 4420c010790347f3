import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { Run } from '../../cli/trainer/run.js'
import { tryDamagedRuns } from '../support/damaged-runs.js'
import { Draw, long, runSeed } from '../support/numbers.js'
import { sentences } from '../support/sentences.js'

// Run folders of any content: `train --resume`, `generate` and `show` work or say in one line why not. ST_MOE_DAMAGED_RUNS is
// how many are tried, ST_MOE_SEED which ones.

const count = Number(process.env.ST_MOE_DAMAGED_RUNS ?? (long ? 300 : 42))
const folder = mkdtempSync(join(tmpdir(), 'st-moe-damaged-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** A run with characters for tokens, or byte pairs. */
async function trained(vocabSize: number | null): Promise<string> {
  const [path, out] = [join(folder, 'book.txt'), join(folder, String(vocabSize))]
  writeFileSync(path, sentences(100))
  const sizes = { layers: 1, dim: 16, heads: 2, experts: 4, 'top-n': 2, context: 16, batch: 2, lr: 4e-3, seed: 1 }
  const layer = { router: 'topk', dropless: false, activation: 'relu', 'expert-hidden-dim': 20, 'shared-experts': 1 }
  const options = {
    ...sizes,
    ...layer,
    'vocab-size': vocabSize,
    steps: 20,
    minutes: 0,
    device: 'cpu',
    threads: 1,
    'compute-dtype': 'f32',
    'evaluate-every': 5,
  }
  using run = await Run.open({ options: options as never, text: { path, name: 'book.txt' }, out, report: () => {} })
  run.start(false)
  await run.train(() => false)
  return out
}

test.each([
  ['characters', null],
  ['byte pairs', 300],
])(`${count} damaged runs with %s`, { timeout: 10_000 + count * 1000 }, async (_, vocabSize) => {
  const whole = await trained(vocabSize)
  const seed = runSeed()
  const { worked, refused, wrong, slowest } = await tryDamagedRuns(new Draw(seed), whole, `${whole}-damaged`, count)
  const peak = process.resourceUsage().maxRSS * 1024
  console.log(
    `seed ${seed}: worked ${JSON.stringify(worked)}, refused ${JSON.stringify(refused)}, slowest ${slowest.toFixed(0)} ms, peak ${(peak / 1e6).toFixed(0)} MB`,
  )
  expect(wrong).toEqual([])
  expect(peak).toBeLessThan(1e9)
  for (const command of ['resume', 'generate', 'show']) {
    expect(worked[command]).toBeGreaterThan(count / 30)
    expect(refused[command]).toBeGreaterThan(count / 30)
  }
})
