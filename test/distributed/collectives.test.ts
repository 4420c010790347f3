import { describe, expect, test } from 'vitest'
import { runRanks } from '../support/jobs.js'
import { long } from '../support/numbers.js'

/** Collectives between processes, over the MPI libraries of PyPI. */

const libraries = ['mpich', 'impi'] as const
type Name = (typeof libraries)[number]

const run = (context: object, name: Name, processes: number, ...args: (string | number)[]) =>
  runRanks(context, name, 'collectives.mjs', processes, ...args)

const atLeast = { values: 160, gradients: 20, steps: 5 }

describe.each(libraries)('%s', (name) => {
  const isWhole = name === 'mpich' || long // the second library has a few of the cases
  type Job = [what: keyof typeof atLeast, ranks: number, mode?: string]
  const onRanks = (ranks: number): Job[] => [
    ['values', ranks],
    ['gradients', ranks],
  ]
  const rest: Job[] = [...onRanks(1), ['gradients', 3], ['values', 2, 'debug'], ['values', 3, 'asked'], ['steps', 2]]
  const jobs: Job[] = [['values', 3], ['steps', 3], ...(isWhole ? rest : []), ...(long ? [2, 4].flatMap(onRanks) : [])]
  test.for(jobs)('%s on %d ranks %s', async ([what, ranks, mode], context) => {
    const { exitCode, answers, errors } = await run(context, name, ranks, what, mode ?? '')
    expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: [] })
    const ends = answers.map((lines) => lines.at(-1))
    for (const end of ends) {
      expect(end).toMatchObject({ wrong: [] })
      expect(end!.tried).toBeGreaterThanOrEqual(atLeast[what])
    }
    if (what === 'steps') expect(new Set(answers.map((lines) => JSON.stringify(lines[0]))).size).toBe(1)
  })

  const both = (op: string, mine: string, others: string) =>
    `[${op}] the ranks disagree: rank 0 calls ${mine}, rank 1 calls ${others}`
  const allToAll = 'allToAll(rows of 1 × f32)'
  const splits =
    '[allToAll] the ranks disagree in allToAll(rows of 1 × f32): rank 1 sends 1 rows to rank 0, which expects 2'
  test.for([
    ['sizes', both('allReduce', 'allReduce(sum, 4 × f32)', 'allReduce(sum, 5 × f32)')],
    ['dtypes', both('allReduce', 'allReduce(sum, 4 × f32)', 'allReduce(sum, 4 × f64)')],
    ['reductions', both('allReduce', 'allReduce(sum, 4 × f32)', 'allReduce(max, 4 × f32)')],
    ['roots', both('broadcast', 'broadcast(4 × f32 from rank 0)', 'broadcast(4 × f32 from rank 1)')],
    [
      'rows',
      both('allGather', 'allGather(rows of 1 × f32) of rows [4, 4]', 'allGather(rows of 1 × f32) of rows [5, 5]'),
    ],
    ['ops', both('allToAll', allToAll, 'allGather(rows of 1 × f32) of rows [4, 4]')],
    ['splits', splits],
  ])('ranks that disagree are a PROCESS_GROUP error on both, which names them: %s', async ([what, text], context) => {
    for (const mode of what === 'splits' ? ['first', 'debug'] : ['first']) {
      const { exitCode, answers } = await run(context, name, 2, 'disagree', what, mode)
      expect(exitCode).toBe(7)
      for (const [answer] of answers) {
        expect(answer.code).toBe('PROCESS_GROUP')
        // rank 1 calls another op in one of the cases
        expect(
          answer.message.replace(
            '[allGather] the ranks disagree: rank 0 calls allTo',
            '[allToAll] the ranks disagree: rank 0 calls allTo',
          ),
        ).toBe(text)
      }
    }
  })

  test('a message of another shape is an error where it arrives', async (context) => {
    const { answers } = await run(context, name, 2, 'disagree', 'messages', 'first')
    expect(answers[1][0]).toMatchObject({
      code: 'PROCESS_GROUP',
      message: '[recv] the ranks disagree: rank 0 sends 4 × f32, rank 1 receives 3 × f32',
    })
  })

  test('a new call on one rank alone is no hang where calls are not compared', async (context) => {
    const { answers } = await run(context, name, 2, 'disagree', 'sizes', 'later')
    for (const [{ code }] of answers) expect(['TIMEOUT', 'PROCESS_GROUP']).toContain(code)
  })

  test('what is wrong on one rank is an error there, and nothing has been sent', async (context) => {
    const { exitCode, answers, errors } = await run(context, name, 2, 'mistakes')
    expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: [] })
    for (const [rank, [found]] of answers.entries()) {
      expect(found.errors).toEqual([
        { code: 'SHAPE', message: '[allToAll] 3 rows of x cannot be divided between 2 ranks; pass splits' },
        { code: 'SHAPE', message: '[allToAll] splits must add up to the 3 rows of x, got [1, 1]' },
        { code: 'SHAPE', message: `[allGather] splits[${rank}] must be the 3 rows of x at this rank, got 4` },
        { code: 'OPTION', message: `[send] to must be another rank than this one, ${rank}` },
        { code: 'OPTION', message: '[broadcast] root must be an integer from 0 to 1, got 2' },
        {
          code: 'UNSUPPORTED',
          message: '[initProcessGroup] the process group belongs to the main thread, and a process has only one',
        },
        { code: 'DISPOSED', message: '[allReduce] the process group has been destroyed' },
      ])
      expect(found.late).toMatchObject({ code: 'DISPOSED' })
    }
  })

  const exchanges = ['barrier', 'allReduce', 'allGather', 'reduceScatter', 'allToAll', 'broadcast', 'send', 'recv']
  const drills = exchanges.flatMap((op, i) =>
    (['SIGKILL', 'SIGSTOP'] as const).map((signal) => [op, signal, i % 3, i % 2 ? 300 : 300_000] as const),
  )
  const tried = drills.filter(
    ([op, signal]) =>
      long || (isWhole ? signal === 'SIGKILL' || op === 'allToAll' : signal === 'SIGKILL' && op === 'allToAll'),
  )
  test.for(tried)('%s, %s of rank %d, %d elements', async ([op, signal, victim, elements], context) => {
    const how = elements === 300 ? 'asynchronous' : 'at once'
    const { answers } = await run(context, name, 3, 'lose', op, signal, victim, elements, how)
    const isTimeout = signal === 'SIGSTOP'
    const pairs = op === 'send' || op === 'recv'
    const who = pairs ? 'rank \\d is missing' : victim === 0 ? 'rank 0 does not answer' : `rank ${victim} is missing`
    const of = pairs ? '(send|recv)' : op
    for (const [rank, [answer]] of answers.entries()) {
      if (rank === victim) continue
      expect(answer).toMatchObject({
        code: isTimeout ? 'TIMEOUT' : 'PEER_LOST',
        message: expect.stringMatching(
          isTimeout
            ? `${of}: not all ranks came within 2 s \\(timeout\\): ${who}$`
            : `${of}: rank ${victim} has ended$`,
        ),
        again: isTimeout ? 'TIMEOUT' : 'PEER_LOST',
      })
      if (!pairs) expect(answer.changed, 'the interrupted step').toEqual([1, 2])
      if (!pairs && op !== 'barrier') expect(answer.isKept, 'what the library may still write to').toBe(true)
      if (isTimeout) expect(answer.ms).toBeGreaterThanOrEqual(1900)
    }
  })
})
