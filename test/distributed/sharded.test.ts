import { expect, test } from 'vitest'
import { runRanks } from '../support/jobs.js'
import { long } from '../support/numbers.js'

/** Optimizers whose state the ranks of a job share out, against those that every rank has. */

const atLeast = { steps: 400, refusals: 6, twice: 20, flat: 1 }
type Job = [what: keyof typeof atLeast, library: 'mpich' | 'impi', ranks: number]
const rest: Job[] = [...[1, 2, 4].map((ranks): Job => ['steps', 'mpich', ranks]), ['steps', 'impi', 2]]
const jobs: Job[] = [
  ['steps', 'mpich', 3],
  ...[1, 3].map((ranks): Job => ['refusals', 'mpich', ranks]),
  ['twice', 'mpich', 3],
  ['flat', 'mpich', 2],
  ...(long ? rest : []),
]

test.for(jobs)('%s: %s, %d ranks', async ([what, library, ranks], context) => {
  const { exitCode, answers, errors } = await runRanks(context, library, 'sharded.mjs', ranks, what)
  expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: [] })
  for (const [end] of answers) {
    expect(end).toMatchObject({ wrong: [] })
    expect(end.tried).toBeGreaterThanOrEqual(atLeast[what])
  }
})
