import { expect, test } from 'vitest'
import { runRanks } from '../support/jobs.js'
import { long } from '../support/numbers.js'

/** Layers whose experts are spread over processes, against one process that has the batches of all. */

const atLeast = { exact: 4900, steps: 150, data: 300, loads: 30, mixed: 60, refusals: 5, memory: 5 }
type Ranks = [keyof typeof atLeast, 'mpich' | 'impi', number, string]
const rest: Ranks[] = [
  ['exact', 'mpich', 2, 'all'],
  ['exact', 'mpich', 4, 'some'],
  ['exact', 'impi', 3, 'some'],
  ['steps', 'mpich', 2, 'all'],
  ['steps', 'impi', 2, 'all'],
  ...[1, 3, 4].map((ranks): Ranks => ['data', 'mpich', ranks, 'all']),
  ['data', 'impi', 2, 'all'],
  ...[1, 2].map((ranks): Ranks => ['loads', 'mpich', ranks, 'all']),
]
const jobs: Ranks[] = [
  ['exact', 'mpich', 1, 'all'],
  ['exact', 'mpich', 3, 'all'],
  ['exact', 'impi', 2, 'some'],
  ['steps', 'mpich', 3, 'all'],
  ['data', 'mpich', 2, 'all'],
  ['loads', 'mpich', 3, 'all'],
  ['mixed', 'mpich', 3, 'all'],
  ['refusals', 'mpich', 2, 'all'],
  ['memory', 'mpich', 4, 'all'],
  ...(long ? rest : []),
]

test.for(jobs)('%s: %s, %d ranks, %s', async ([what, library, ranks, which], context) => {
  const child = ['steps', 'data', 'loads', 'mixed'].includes(what) ? 'data-parallel.mjs' : 'expert-parallel.mjs'
  const { exitCode, answers, errors } = await runRanks(context, library, child, ranks, what, which)
  expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: [] })
  for (const [end] of answers) {
    expect(end).toMatchObject({ wrong: [] })
    expect(end.tried).toBeGreaterThanOrEqual(which === 'all' ? atLeast[what] : 1900)
  }
})
