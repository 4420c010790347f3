import { mkdtempSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, type TestContext, test } from 'vitest'
import { initProcessGroup, Linear, loadCheckpoint, saveCheckpoint } from '../../lib/index.js'
import { runRanks } from '../support/jobs.js'
import { long } from '../support/numbers.js'

/** Checkpoints that several ranks write, and that any number of them reads. */

const atLeast = { save: 28, load: 28, refusals: 9, reads: 1 }

async function run(
  context: TestContext,
  ranks: number,
  what: keyof typeof atLeast,
  folder: string,
  library: 'mpich' | 'impi' = 'mpich',
) {
  const { exitCode, answers, errors } = await runRanks(context, library, 'rank-files.mjs', ranks, what, folder)
  expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: [] })
  for (const [end] of answers) {
    expect(end).toMatchObject({ wrong: [] })
    expect(end.tried).toBeGreaterThanOrEqual(atLeast[what])
  }
}

const newFolder = () => mkdtempSync(join(tmpdir(), 'st-moe-ranks-'))

const rest: [saved: number, loaded: number[]][] = long
  ? [
      [1, [1, 3, 4]],
      [4, [1, 2, 3]],
    ]
  : []
test.for([[2, [1, 3]], ...rest] as const)('saved by %d ranks, loaded by %j', async ([ranks, others], context) => {
  const folder = newFolder()
  await run(context, ranks, 'save', folder)
  for (const other of others) await run(context, other, 'load', folder)
})

test.runIf(long)('with the other library', async (context) => {
  const folder = newFolder()
  await run(context, 2, 'save', folder, 'impi')
  await run(context, 3, 'load', folder, 'impi')
})

test.for([1, 3])('errors of one of %d ranks', (ranks, context) => run(context, ranks, 'refusals', newFolder()))

test('three ranks read what they hold', (context) => run(context, 3, 'reads', newFolder()))

test.for([
  [2, 'fsync', 1],
  [1, 'rename', 1],
  [0, 'rename', 1],
  [0, 'rename', 2],
] as const)(
  'rank %i is killed before %s number %i: the others say so, and the checkpoint before loads',
  async (at, context) => {
    const folder = newFolder()
    const { answers } = await runRanks(context, 'mpich', 'rank-files.mjs', 3, 'killed', folder, ...at)
    for (const [rank, [end]] of answers.entries()) {
      if (rank === at[0]) expect(end).toBeUndefined()
      else expect(end).toEqual({ tried: 2, wrong: [] })
    }
    const model = new Linear(3, 2)
    expect(await loadCheckpoint(folder, { model })).toEqual({ step: 1 })
    const group = initProcessGroup()
    await saveCheckpoint(folder, { model, step: 3, group })
    group.destroy()
    expect(readdirSync(folder).length).toBe(2)
  },
)
