import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, onTestFinished, type TestContext, test, vi } from 'vitest'
import { initProcessGroup, ProcessGroup, processBackends } from '../../lib/index.js'
import { codeOf, runRanks } from '../support/jobs.js'
import { mpiFor } from '../support/mpi.js'
import { long, some } from '../support/numbers.js'
import { endOf } from '../support/program.js'
import { temporary } from '../support/temporary.js'

/** Process groups over the MPI libraries of PyPI. */

const bin = fileURLToPath(new URL('../../dist/cli.js', import.meta.url))
const child = fileURLToPath(new URL('../children/group.mjs', import.meta.url))
const libraries = ['mpich', 'impi'] as const
type Name = (typeof libraries)[number]

const run = (context: object, name: Name, processes: number, ...args: (string | number)[]) =>
  runRanks(context, name, 'group.mjs', processes, ...args)

describe.each(libraries)('%s', (name) => {
  const waits = name === 'mpich' || long // for timeouts, which take seconds each

  test('connects the processes of the launcher', async (context) => {
    const { exitCode, answers, errors } = await run(context, name, 3, 'facts')
    expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: [] })
    for (const [rank, lines] of answers.entries()) {
      const [facts, backends, barrier, again] = lines
      const same = { size: 3, localSize: 3, timeout: 600_000, threads: 1, kept: true, hooks: 'n' }
      expect(facts).toEqual({ rank, localRank: rank, ...same })
      const version = expect.stringMatching(name === 'mpich' ? /MPICH/ : /Intel.*MPI/)
      expect(backends).toEqual([{ backend: 'mpi', available: true, version, library: mpiFor(context, name).library }])
      expect(barrier).toEqual({
        code: 'DISPOSED',
        message: '[ProcessGroup.barrier] the process group has been destroyed',
      })
      expect(again).toEqual({
        code: 'OPTION',
        message: '[initProcessGroup] MPI cannot be initialized a second time in a process',
      })
    }
  })

  test.runIf(name === 'mpich')('what UCX logs is not on standard output', async (context) => {
    vi.stubEnv('UCX_LOG_LEVEL', 'info')
    onTestFinished(() => void vi.unstubAllEnvs())
    const { exitCode, answers, errors } = await run(context, name, 2, 'facts') // which reads standard output as JSON
    expect(exitCode).toBe(0)
    expect(answers.map(([{ rank }]) => rank)).toEqual([0, 1])
    expect(errors.join('\n')).toMatch(/UCX +INFO/)
  })

  test('connects the processes of its own mpiexec', async (context) => {
    const { library, mpiexec } = mpiFor(context, name)
    const env = { ...process.env, ST_MOE_MPI_LIBRARY: library }
    const { code, out } = await endOf(spawn(mpiexec, ['-n', '2', process.execPath, child, 'facts'], { env }))
    expect(code).toBe(0)
    const ranks = out.split('\n').filter((line) => line.startsWith('{"rank"'))
    expect(ranks.map((line) => JSON.parse(line).rank).sort()).toEqual([0, 1])
  })

  test.for(waits ? ['plain', 'debug'] : ['debug'])('barriers of groups of groups: %s', async (mode, context) => {
    const { exitCode, answers, errors } = await run(
      context as unknown as TestContext,
      name,
      4,
      'groups',
      mode,
      temporary(),
    )
    expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: [] })
    const chosen = [[1, 3, 1, 3], [2, 3, 2, 3], null, [0, 3, 0, 3]]
    for (const [rank, [facts, after]] of answers.entries()) {
      const near = [rank % 2, 2, rank % 2, 2]
      const far = [Math.floor(rank / 2), 2, Math.floor(rank / 2), 2]
      expect(facts).toEqual({
        rank,
        near,
        far,
        some: chosen[rank],
        ...(rank !== 2 && { alone: rank === 1 ? [0, 1, 0, 1] : null }),
      })
      expect(after.code).toBe(rank === 2 ? undefined : 'DISPOSED')
    }
  })

  test.for([
    ['options', 'timeout: 10000, debug: false })', 'timeout: 10001, debug: false })', 'initProcessGroup'],
    ['lists', 'newGroup([0, 1])', 'newGroup([0])', 'ProcessGroup.newGroup'],
    ['sizes', 'split({ expertParallel: 2 })', 'split({ expertParallel: 1 })', 'ProcessGroup.split'],
    ['methods', 'barrier()', 'newGroup([0])', 'ProcessGroup.'],
  ])('ranks that disagree are a PROCESS_GROUP error on all of them: %s', async ([what, mine, others, op], context) => {
    const { exitCode, answers } = await run(context, name, 2, 'disagree', what)
    expect(exitCode).toBe(3)
    for (const [error] of answers) {
      expect(error).toMatchObject({ code: 'PROCESS_GROUP', message: expect.stringContaining(`[${op}`) })
      expect(error.message).toContain('the ranks disagree: rank 0 calls ')
      expect(error.message).toMatch(new RegExp(`${escaped(mine)}, rank 1 calls .*${escaped(others)}$`))
    }
  })

  const late = '[ProcessGroup.barrier] barrier: not all ranks came within 5 s (timeout)'
  test.runIf(long)('a rank that comes too late is a TIMEOUT error', async (context) => {
    const { answers } = await run(context, name, 2, 'disagree', 'late')
    expect(answers[0][0]).toEqual({ code: 'TIMEOUT', message: `${late}: rank 1 is missing` })
  })

  const lost = (rank: number | string) => `[ProcessGroup.barrier] barrier: ${rank} has ended`
  const drills = [
    ['SIGKILL:1', 'PEER_LOST', lost('rank 1')],
    ['SIGKILL:0', 'PEER_LOST', lost('rank 0')],
    ['exit:2', 'PEER_LOST', lost('rank 2')],
    ['SIGSTOP:0', 'TIMEOUT', `${late}: rank 0 does not answer`],
    ['SIGSTOP:2', 'TIMEOUT', `${late}: rank 2 is missing`],
  ] as const
  const inEachRun = waits ? ['SIGKILL:1', 'SIGKILL:0', 'exit:2', 'SIGSTOP:0'] : ['SIGKILL:1']
  test.for(drills.filter(([what]) => long || inEachRun.includes(what)))(
    'a rank that is lost in a barrier: %s',
    async ([what, code, message], context) => {
      const { answers, ranks } = await run(context, name, 3, 'lose', what)
      const victim = Number(what.split(':')[1])
      for (const [rank, lines] of answers.entries()) {
        if (rank === victim) continue
        const [first, { again }] = lines
        expect(first).toMatchObject({ code, message })
        expect(again.map((error: { code: string }) => error.code)).toEqual([code, code, code])
        expect(ranks[rank]).toEqual({ code: 5, signal: null })
      }
      expect(answers[victim]).toEqual([])
    },
  )

  test.runIf(waits)('a TIMEOUT error names the ranks of the group that are missing, and no other', async (context) => {
    const { answers } = await run(context, name, 4, 'missing')
    const which = answers.map(([{ message }]) => /\(timeout\)(.*)$/.exec(message)?.[1])
    expect(which).toEqual([undefined, ': rank 2 is missing', undefined, ': ranks 0, 1, 2 are missing'])
  })

  test.runIf(waits)('a rank that waits at an earlier call of the group is missing at a later one', async (context) => {
    const { answers } = await run(context, name, 4, 'between')
    const which = answers.map(([{ message }]) => /\(timeout\)(.*)$/.exec(message)?.[1])
    const behind = ': ranks 2, 3 are missing'
    expect(which).toEqual([behind, behind, undefined, ': ranks 0, 1, 2 are missing'])
  })

  test('after the start the watch alone says who has ended', async (context) => {
    const { exitCode, answers, errors } = await run(context, name, 2, 'told')
    expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: [] })
    expect(answers).toEqual([[{ result: null }], [{ result: null }]])
  })

  test.runIf(waits)('a rank that stops before it comes is a TIMEOUT error', async (context) => {
    const { answers, ranks } = await run(context, name, 3, 'start', 'SIGSTOP')
    const message = '[initProcessGroup] MPI_Init_thread did not return within 3 s (timeout)'
    for (const rank of [0, 1]) expect(answers[rank]).toEqual([{ code: 'TIMEOUT', message }])
    expect(ranks[2]).toEqual({ code: null, signal: 'SIGKILL' })
  })

  test('a rank that is killed before it comes is a PEER_LOST error', async (context) => {
    const { exitCode, errors, answers, job } = await run(context, name, 3, 'start', 'SIGKILL')
    expect(exitCode).toBe(137)
    expect(errors).toEqual([`rank 2 (process ${job.pids[2]}) was ended by SIGKILL`])
    const message = '[initProcessGroup] MPI_Init_thread: rank 2 has ended'
    for (const rank of [0, 1]) expect(answers[rank]).toEqual([{ code: 'PEER_LOST', message }])
  })

  const times = some([60, 120, 0, 30, 90, 150, 180, 210, 240, 300], name === 'mpich' ? 2 : 1)
  const turns = Array.from({ length: long ? 5 : 1 }, () => times).flat()
  test.for(turns)('so is one that is killed in the start, after %d ms', async (after, context) => {
    const { answers } = await run(context, name, 3, 'startKilled', after)
    for (const [rank, [error]] of answers.entries())
      if (rank !== 2)
        expect(error).toMatchObject({ code: 'PEER_LOST', message: expect.stringContaining('rank 2 has ended') })
  })

  test('if the launcher is killed, the ranks notice', async (context) => {
    const { library } = mpiFor(context, name)
    const folder = temporary()
    const env = { ...process.env, ST_MOE_MPI_LIBRARY: library }
    const launcher = spawn(
      process.execPath,
      [bin, 'launch', '-n', '3', process.execPath, child, 'lose', 'launcher:0', folder],
      { env },
    )
    const [, signal] = await once(launcher, 'exit')
    expect(signal).toBe('SIGKILL')
    for (const rank of ['0', '1', '2'])
      await expect
        .poll(() => existsSync(join(folder, rank)) && readFileSync(join(folder, rank), 'utf8'))
        .toBe(JSON.stringify({ code: 'PEER_LOST', message: lost('the launcher') }))
  })

  test('a worker may have the group, and then no other thread', async (context) => {
    const { exitCode, answers } = await run(context, name, 2, 'workers', 'first')
    expect(exitCode).toBe(0)
    for (const [rank, [inWorker, main]] of answers.entries()) {
      expect(inWorker).toEqual({ rank })
      expect(main.code).toBe('UNSUPPORTED')
      expect(main.message).toMatch(
        / the process group belongs to worker \d+, which has ended, and a process has only one$/,
      )
    }
  })

  test('a worker beside the main thread is refused', async (context) => {
    const { exitCode, answers } = await run(context, name, 2, 'workers', 'second')
    expect(exitCode).toBe(0)
    const message = '[initProcessGroup] the process group belongs to the main thread, and a process has only one'
    for (const [refused] of answers) expect(refused).toEqual({ code: 'UNSUPPORTED', message })
  })
})

const escaped = (text: string) => text.replaceAll(/[()[\]{}]/g, '\\$&')

describe('without a launcher', () => {
  test('a group of one rank, which opens no library', () => {
    process.env.ST_MOE_MPI_LIBRARY = '/nowhere'
    using group = initProcessGroup({ library: '/nowhere either', debug: true, timeout: 1234 })
    const { rank, size, localRank, localSize, timeout } = group
    expect({ rank, size, localRank, localSize, timeout }).toEqual({
      rank: 0,
      size: 1,
      localRank: 0,
      localSize: 1,
      timeout: 1234,
    })
    group.barrier()
    const { expertParallel, expertDataParallel } = group.split({ expertParallel: 1 })
    expect([expertParallel.size, expertDataParallel.size, group.newGroup([0])!.size]).toEqual([1, 1, 1])
    expertParallel.destroy()
    expect(codeOf(() => expertParallel.barrier())).toBe('DISPOSED')
    expertDataParallel.barrier()
    delete process.env.ST_MOE_MPI_LIBRARY
  })

  test('a second group needs the end of the first', () => {
    const group = initProcessGroup()
    expect(() => initProcessGroup()).toThrow('[initProcessGroup] this process has a process group: destroy() ends it')
    group.destroy()
    group.destroy()
    expect(codeOf(() => group.barrier())).toBe('DISPOSED')
    expect(codeOf(() => group.newGroup([0]))).toBe('DISPOSED')
    expect(codeOf(() => group.split({ expertParallel: 1 }))).toBe('DISPOSED')
    initProcessGroup().destroy()
  })

  test.each<[string, (group: ProcessGroup) => unknown]>([
    ['[ProcessGroup.newGroup] ranks must be an array, got 3', (group) => group.newGroup(3 as never)],
    ['[ProcessGroup.newGroup] ranks must have at least one rank, got []', (group) => group.newGroup([])],
    ['[ProcessGroup.newGroup] ranks[1] must be an integer from 0 to 0, got 1', (group) => group.newGroup([0, 1])],
    ['[ProcessGroup.newGroup] ranks must be different, got [0, 0]', (group) => group.newGroup([0, 0])],
    ['expertParallel must divide the size of the group, 1, got 2', (group) => group.split({ expertParallel: 2 })],
    ['expertParallel must be an integer of at least 1, got undefined', (group) => group.split({} as never)],
    [
      '[ProcessGroup] initProcessGroup makes process groups',
      () => new (ProcessGroup as unknown as new () => ProcessGroup)(),
    ],
  ])('bad input: %s', (message, use) => {
    using group = initProcessGroup()
    expect(() => use(group)).toThrow(message)
    expect(codeOf(() => use(group))).toBe('OPTION')
  })

  test.each<[string, unknown]>([
    ['backend must be one of \'mpi\', got "nccl"', { backend: 'nccl' }],
    ['timeout must be a finite number from 1 to 1000000000, got "5"', { timeout: '5' }],
    ['timeout must be a finite number from 1 to 1000000000, got NaN', { timeout: Number.NaN }],
    ['library must be the name of a file, got ""', { library: '' }],
    ['library must be the name of a file, got 3', { library: 3 }],
    ['debug must be true or false, got 1', { debug: 1 }],
    ['unknown option "timeOut"; did you mean \'timeout\'?', { timeOut: 1 }],
  ])('a wrong option: %s', (message, options) => {
    expect(() => initProcessGroup(options as never)).toThrow(`[initProcessGroup] ${message}`)
    expect(codeOf(() => initProcessGroup(options as never))).toBe('OPTION')
  })
})

describe('a library that cannot be used', () => {
  beforeEach(() => {
    process.env.PMI_SIZE = '2'
  })
  afterEach(() => {
    for (const name of ['PMI_SIZE', 'ST_MOE_MPI_LIBRARY', 'VIRTUAL_ENV']) delete process.env[name]
  })
  const fails = (options?: { library: string }) => {
    expect(codeOf(() => initProcessGroup(options))).toBe('BACKEND_UNAVAILABLE')
    try {
      initProcessGroup(options)
    } catch (error) {
      return (error as Error).message
    }
    throw new Error('no error')
  }

  test('the error lists all places and what to install', () => {
    process.env.VIRTUAL_ENV = '/no/environment'
    const text = fails()
    expect(text).toMatch(
      /^\[initProcessGroup\] no MPI library with the standard ABI of MPI 5.0 can be used.\nTried:\n {2}@st-moe\/mpich-\S+: this package is not installed\n {2}libmpi_abi\S+: .*\n {2}\/no\/environment\/lib\/libmpi_abi\S+: there is no such file\nTo install one, run: pip install mpich, in an active Python environment; @st-moe\/mpich-\S+ is not on npm yet: README.md, Install, says how to make it$/,
    )
    delete process.env.VIRTUAL_ENV
    expect(fails()).toContain('\n  Python: no environment is active\n')
    expect(processBackends()).toEqual([
      {
        backend: 'mpi',
        available: false,
        stage: 'library',
        reason: expect.stringMatching(/^@st-moe.*\n.*\nPython: /),
        install: expect.stringMatching(
          /^pip install mpich, in an active Python environment; @st-moe\/mpich-\S+ is not on npm yet/,
        ),
      },
    ])
  })

  test('library, and the variable, name the only place', () => {
    process.env.ST_MOE_MPI_LIBRARY = '/no/variable'
    expect(fails()).toContain('Tried:\n  ST_MOE_MPI_LIBRARY=/no/variable: there is no such file\nTo')
    expect(fails({ library: '/no/option' })).toContain('Tried:\n  /no/option: there is no such file\nTo')
  })

  test.runIf(process.platform === 'linux')('other files are not opened, or said to be none', (context) => {
    const folder = temporary()
    const { library } = mpiFor(context, 'mpich')
    const damaged = join(folder, 'libmpi_abi.so.1')
    copyFileSync(library, damaged)
    truncateSync(damaged, 1_000_000)
    expect(fails({ library: damaged })).toMatch(
      /: the file is damaged: it has 1000000 bytes, its header requires \d+\n/,
    )
    const text = join(folder, 'text')
    writeFileSync(text, 'no library')
    expect(fails({ library: text })).toContain(`${text}: file too short`)
    expect(fails({ library: 'libc.so.6' })).toContain(
      'libc.so.6: this is not an MPI library: it has no MPI_Init_thread',
    )
    const own = join(dirname(library), 'libmpi.so.12')
    const message = `${own}: libmpi.so.12 has the ABI of its implementation; libmpi_abi.so.1 of the same implementation has the standard one`
    expect(fails({ library: own })).toContain(message)
    expect(readFileSync('/proc/self/maps', 'utf8')).not.toContain('libmpi')
  })
})

test('a library that sees fewer processes than the launcher started does not fit', async (context) => {
  const { library } = mpiFor(context, 'mpich')
  const env = { ...process.env, ST_MOE_MPI_LIBRARY: library, PMI_SIZE: '4' }
  const { code, err } = await endOf(spawn(process.execPath, [child, 'facts'], { env }))
  expect(code).toBe(1)
  expect(err).toContain('[initProcessGroup] the launcher started 4 processes, the library sees 1: ')
  expect(err).toContain(' and the launcher do not fit. Start the program with st-moe launch or ')
})
