import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { beforeAll, expect, type TestContext, test } from 'vitest'
import { at, bin, folder, jsonLines, succeeded, tiny } from '../support/cli.js'
import { expectEnded } from '../support/jobs.js'
import { mpiFor } from '../support/mpi.js'
import { long, some } from '../support/numbers.js'
import { endOf, printed, runProgram } from '../support/program.js'
import { sentences } from '../support/sentences.js'

/** `st-moe train --processes`. */

const sizes = [
  ...tiny.slice(0, -2),
  '--batch',
  '12',
  '--second-policy',
  'random',
  '--top-n',
  '4',
  '--evaluate-every',
  '10',
]
const settings = (context: object) => ({
  cwd: folder,
  env: {
    ...process.env,
    ST_MOE_CUDA_LIBRARY: '/nowhere.so',
    ST_MOE_MPI_LIBRARY: mpiFor(context as TestContext, 'mpich').library,
  },
})
const train = (context: object, ...args: string[]) => runProgram([bin, 'train', ...args, '--json'], settings(context))

/** Its held-out text takes several forwards of each of two processes. */
beforeAll(() => writeFileSync(at('long.txt'), sentences(400)))

/** A run in several processes that does not end by itself. */
const endless = (context: object, out: string, processes: number, ...more: string[]) => {
  const flags = ['--out', out, '--processes', String(processes), '--steps', '100000', ...more]
  const args = [bin, 'train', 'book.txt', ...flags, ...sizes]
  const child = spawn(process.execPath, args, settings(context))
  return { child, ended: endOf(child) }
}
const goesOn = async (context: object, out: string) =>
  expect(await train(context, '--resume', '--out', out, '--minutes', '0.00001')).toMatchObject({ code: 0, err: '' })

/** What a run prints of its steps and evaluations. */
const lossesOf = (out: string): number[] =>
  jsonLines(out).flatMap(({ event, loss }) => (event === 'step' || event === 'evaluation' ? [loss] : []))

/** Of processes, the losses and what the run says of itself. */
async function run(context: object, out: string, ...args: string[]) {
  const ended = await train(context, '--out', out, ...args)
  expect(ended).toMatchObject({ code: 0, err: '' })
  return { losses: lossesOf(ended.out), about: jsonLines(ended.out)[0] }
}
const over = (processes: number, experts = 1) => [
  ...['--processes', String(processes)],
  ...['--expert-parallel', String(experts)],
]
const start = (context: object, out: string, ...args: string[]) =>
  run(context, out, 'long.txt', '--steps', '20', ...args, ...sizes)
const aStep = ['--minutes', '0.00001']

function expectNear(losses: number[], from: number[]) {
  expect(losses).toHaveLength(from.length)
  for (const [i, loss] of losses.entries()) expect(Math.abs(loss / from[i] - 1)).toBeLessThan(1e-5)
}

/** A run of one process, which the others are compared with. */
let alone: ReturnType<typeof run> | null = null
const ofOne = (context: object) => {
  alone ??= start(context, 'one', ...over(1))
  return alone
}

test('losses are those of one process, also of a run that goes on with another number of processes', async (context) => {
  const { losses: wanted } = await ofOne(context)
  expect(wanted).toHaveLength(20 + 3)
  for (const processes of some([3, 2], 0))
    expectNear((await start(context, `on ${processes}`, ...over(processes))).losses, wanted)
  expect((await start(context, 'parts', ...over(4), ...aStep)).losses).toHaveLength(2)
  expectNear((await run(context, 'parts', '--resume', ...over(2))).losses, wanted.slice(2))
})

const files = (out: string): string[] => readdirSync(at(out)).filter((name) => name.startsWith('checkpoint'))

test('so are those of processes that share out the experts; their checkpoint is one of any number', async (context) => {
  const { losses: wanted, about } = await ofOne(context)
  const shared = async (out: string, ...args: string[]) => {
    const { losses, about: own } = await start(context, out, ...args)
    expectNear(losses, wanted)
    expect(own).toEqual(about)
  }
  if (long) await shared('shared on 3', ...over(3, 3)) // 4 experts
  await shared('two copies', ...over(4, 2))
  expect(files('two copies')).toHaveLength(4 + 1)
  expect(await textOf('two copies')).toBe(await textOf('one'))

  expect((await start(context, 'in turns', ...over(2, 2), ...aStep)).losses).toHaveLength(2)
  const next = async (...args: string[]) => (await run(context, 'in turns', '--resume', ...args)).losses
  const second = long ? await next(...over(4, 4), ...aStep) : []
  const third = await next(...over(1), ...aStep)
  expect(files('in turns')).toEqual(['checkpoint.safetensors'])
  expectNear([...second, ...third, ...(await next('--minutes', '0', ...over(2, 2)))], wanted.slice(2))
  expect(files('in turns')).toHaveLength(2 + 1)
})

const textOf = (out: string) => succeeded(['generate', out, '--seed', '3', '--length', '40'])

test('processes need the memory of one for each, less experts that are elsewhere', async (context) => {
  const needs = async (...args: string[]) => {
    const large = ['--dim', '1024', '--expert-hidden-dim', '30000000', '--experts', '8', '--heads', '2']
    const rest = ['--layers', '1', '--batch', '2', '--context', '16']
    const { code, err } = await train(context, 'book.txt', '--out', 'large', ...args, ...large, ...rest)
    expect({ code, err }).toEqual({ code: 1, err: expect.stringMatching(/ needs at least [\d.]+ \w+ of memory/) })
    return Number(/at least ([\d.]+) GB/.exec(err)![1])
  }
  const alone = await needs(...over(1))
  expect((await needs(...over(2))) / alone).toBeCloseTo(2, 1)
  expect((await needs(...over(2, 2))) / alone).toBeCloseTo(1, 1)
})

test.for(some([2, 1], 1))(
  'Ctrl-C finishes the step, saves, and ends all processes; experts over %d',
  async (n, context) => {
    const { child, ended } = endless(context, 'stopped', 2, '--overwrite', '--expert-parallel', String(n))
    await printed(child, 'step 10 ')
    child.kill('SIGINT')
    const { code, out, err } = await ended
    expect({ code, err }).toEqual({
      code: 130,
      err: 'finishing this step and saving; press Ctrl-C again to stop at once\n',
    })
    expect(out).toContain('continue with --resume --out stopped')
    expect(readdirSync(at('stopped'))).not.toContain('run.lock')
    await goesOn(context, 'stopped')
  },
)

test('a signal to the first process alone stops all, wherever they are in an evaluation', async (context) => {
  const { child, ended } = endless(context, 'alone', 2, '--expert-parallel', '2')
  await printed(child, 'step 10 ')
  const [first] = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').split(' ')
  process.kill(Number(first), 'SIGINT')
  expect(await ended).toMatchObject({ code: 130 })
  await goesOn(context, 'alone')
})

test.for<[string[], number, string]>([
  [['book.txt', '--processes', '5'], 2, 'st-moe train: --batch must be a multiple of --processes 5, got 12\n'],
  [
    ['book.txt', '--processes', '4', '--expert-parallel', '3'],
    2,
    'st-moe train: --expert-parallel must divide --processes 4, got 3\n',
  ],
  [['book.txt', '--expert-parallel', '2'], 2, 'st-moe train: --expert-parallel must divide --processes 1, got 2\n'],
  [['-', '--processes', '2'], 2, 'st-moe train: a text from standard input is for one process\n'],
  [['nothing.txt', '--processes', '2'], 1, 'nothing.txt'],
  [['book.txt', '--processes', '0'], 2, '--processes must be a whole number from 1 to 1024'],
])('refuses %j once', async ([args, expected, message], context) => {
  const { code, out, err } = await train(context, ...args, '--out', 'refused', ...sizes)
  expect({ code, out }).toEqual({ code: expected, out: '' })
  expect(err).toContain(message)
  expect(err.split('st-moe train:')).toHaveLength(2)
  expect(existsSync(at('refused/checkpoint.safetensors'))).toBe(false)
})

test('without a library the error has the command that installs one', async () => {
  const env = { ...process.env, ST_MOE_MPI_LIBRARY: '/nowhere/libmpi_abi.so.1' }
  const { code, err } = await runProgram([bin, 'train', 'book.txt', '--processes', '2'], { cwd: folder, env })
  expect(code).toBe(1)
  expect(err).toMatch(
    /^st-moe train: --processes needs an MPI library: pip install mpich, .*@st-moe\/mpich-\S+ is not on npm yet: .* Tried: .*nowhere.*\n$/,
  )
})

test.for(some([3, 1], 1))(
  'a killed process ends the others, the last checkpoint stays; experts over %d',
  async (n, context) => {
    const { child, ended } = endless(context, 'killed', 3, '--overwrite', '--expert-parallel', String(n))
    await printed(child, 'step 20 ')
    const pids = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim().split(' ').map(Number)
    expect(pids).toHaveLength(3)
    process.kill(pids[2], 'SIGKILL')
    const { code, err } = await ended
    expect(code).toBe(137)
    expect(err).toContain('rank 2')
    await expectEnded(pids)
    await goesOn(context, 'killed')
  },
)

test('doctor names the MPI library, or the command that installs one', async (context) => {
  const doctor = async (env: NodeJS.ProcessEnv) => (await runProgram([bin, 'doctor'], { cwd: folder, env })).out
  const { env } = settings(context)
  expect(await doctor(env)).toMatch(/^MPI +MPICH Version: 5\.\S+ \(.*libmpi_abi\.so\.1\)$/m)
  const none = await doctor({ ...env, ST_MOE_MPI_LIBRARY: '/nowhere.so' })
  expect(none).toMatch(
    /^MPI +no library, for several processes: pip install mpich, .*@st-moe\/mpich-\S+ is not on npm yet/m,
  )
  expect(none).toContain('All checks passed.')
})
