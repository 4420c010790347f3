import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { expect, type TestContext, test } from 'vitest'
import { at, bin, folder, jsonLines, tiny } from '../support/cli.js'
import { expectEnded } from '../support/jobs.js'
import { mpiFor } from '../support/mpi.js'
import { endOf, printed, runProgram } from '../support/program.js'

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

/** A run in several processes that does not end by itself. */
const endless = (context: object, out: string, processes: number) => {
  const args = [bin, 'train', 'book.txt', '--out', out, '--processes', String(processes), '--steps', '100000', ...sizes]
  const child = spawn(process.execPath, args, settings(context))
  return { child, ended: endOf(child) }
}
const goesOn = async (context: object, out: string) =>
  expect(await train(context, '--resume', '--out', out, '--minutes', '0.00001')).toMatchObject({ code: 0, err: '' })

/** What a run prints of its steps and evaluations. */
const lossesOf = (out: string): number[] =>
  jsonLines(out).flatMap(({ event, loss }) => (event === 'step' || event === 'evaluation' ? [loss] : []))

test('losses are those of one process, also of a run that goes on with another number of processes', async (context) => {
  const run = async (out: string, ...args: string[]) => {
    const ended = await train(context, '--out', out, ...args)
    expect(ended).toMatchObject({ code: 0, err: '' })
    return lossesOf(ended.out)
  }
  const start = (out: string, steps: number, processes: number) =>
    run(out, 'book.txt', '--steps', String(steps), '--processes', String(processes), ...sizes)
  const wanted = await start('one', 20, 1)
  expect(wanted).toHaveLength(20 + 3)
  const near = (losses: number[], from: number[]) => {
    expect(losses).toHaveLength(from.length)
    for (const [i, loss] of losses.entries()) expect(Math.abs(loss / from[i] - 1)).toBeLessThan(1e-5)
  }
  for (const processes of [2, 3]) near(await start(`on ${processes}`, 20, processes), wanted)
  const minutes = ['--minutes', '0.00001'] // ends after a step
  expect(await run('parts', 'book.txt', '--steps', '20', '--processes', '4', ...minutes, ...sizes)).toHaveLength(2)
  near(await run('parts', '--resume', '--processes', '2'), wanted.slice(2))
})

test('Ctrl-C finishes the step, saves, and ends all processes', async (context) => {
  const { child, ended } = endless(context, 'stopped', 2)
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
})

test.for<[string[], number, string]>([
  [['book.txt', '--processes', '5'], 2, 'st-moe train: --batch must be a multiple of --processes 5, got 12\n'],
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
    /^st-moe train: --processes needs an MPI library: npm install @st-moe\/mpich-\S+, or .*pip install mpich\. Tried: .*nowhere.*\n$/,
  )
})

test('a process that is killed ends the others; the last checkpoint stays', async (context) => {
  const { child, ended } = endless(context, 'killed', 3)
  await printed(child, 'step 20 ')
  const pids = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim().split(' ').map(Number)
  expect(pids).toHaveLength(3)
  process.kill(pids[2], 'SIGKILL')
  const { code, err } = await ended
  expect(code).toBe(137)
  expect(err).toContain('rank 2')
  await expectEnded(pids)
  await goesOn(context, 'killed')
})

test('doctor names the MPI library, or the command that installs one', async (context) => {
  const doctor = async (env: NodeJS.ProcessEnv) => (await runProgram([bin, 'doctor'], { cwd: folder, env })).out
  const { env } = settings(context)
  expect(await doctor(env)).toMatch(/^MPI +MPICH Version: 5\.\S+ \(.*libmpi_abi\.so\.1\)$/m)
  const none = await doctor({ ...env, ST_MOE_MPI_LIBRARY: '/nowhere.so' })
  expect(none).toMatch(/^MPI +no library, for several processes: npm install @st-moe\/mpich-/m)
  expect(none).toContain('All checks passed.')
})
