import { expect, test } from 'vitest'
import { runRanks } from '../support/jobs.js'

/** Layers whose experts are spread over processes, against one process that has the batches of all. */

const jobs: ['exact' | 'steps', 'mpich' | 'impi', number][] = [
  ['exact', 'mpich', 1],
  ['exact', 'mpich', 2],
  ['exact', 'mpich', 3],
  ['exact', 'mpich', 4],
  ['exact', 'impi', 3],
  ['steps', 'mpich', 2],
  ['steps', 'mpich', 3],
  ['steps', 'impi', 2],
]
const atLeast = { exact: 4900, steps: 150 }

test.for(jobs)('%s: %s, %d ranks', async ([what, library, ranks], context) => {
  const { exitCode, answers, errors } = await runRanks(context, library, 'expert-parallel.mjs', ranks, what)
  expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: [] })
  for (const [end] of answers) {
    expect(end).toMatchObject({ wrong: [] })
    expect(end.tried).toBeGreaterThanOrEqual(atLeast[what])
  }
})
