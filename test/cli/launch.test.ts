import { spawn } from 'node:child_process'
import { expect, test } from 'vitest'
import { bin, cli, expectRefused, jsonLines, succeeded } from '../support/cli.js'
import { expectEnded } from '../support/jobs.js'
import { endOf, printed } from '../support/program.js'

/** The command `st-moe launch`; test/distributed/launch.test.ts has what it calls. */

const launch = (...args: string[]) => spawn(process.execPath, [bin, 'launch', ...args])
const loop = 'while :; do sleep 0.01; done'

test('starts processes, passes on all that follows the program, and prints lines with their ranks', async () => {
  const script = 'console.log(process.env.PMI_RANK, process.argv.slice(1).join())'
  const out = await succeeded(['launch', '-n', '3', 'node', '-e', script, '--', '--steps', '3', '-n', '--help'])
  expect(out.trimEnd().split('\n').sort()).toEqual([0, 1, 2].map((rank) => `[${rank}] ${rank} --steps,3,-n,--help`))
})

test('has help, with the letter of a flag', async () => {
  const out = await succeeded(['launch', '--help'])
  expect(out).toContain('  st-moe launch [flags] PROGRAM [ARGUMENT…]')
  expect(out).toMatch(/^ {2}-n, --processes N {2,}number of processes \(1\)$/m)
})

test('--json prints a line of JSON per line of output', async () => {
  const { out, err, code } = await cli([
    'launch',
    '--processes=2',
    '--json',
    '--grace',
    '0.05',
    'sh',
    '-c',
    'echo a; exit 3',
  ])
  const lines = jsonLines(out)
  expect({ code, err }).toEqual({ code: 3, err: '' })
  expect(lines).toContainEqual({ rank: 1, stream: 'stdout', text: 'a' })
  expect(lines).toContainEqual({ rank: null, stream: 'stderr', text: expect.stringContaining(' ended with code 3') })
})

test.each<[string[], 1 | 2, string]>([
  [[], 2, 'st-moe launch: missing PROGRAM'],
  [['-n', '0', 'node'], 2, "--processes must be a whole number from 1 to 1024, got '0'"],
  [['-n'], 2, '--processes needs a value: --processes N'],
  [['-x', 'node'], 2, 'unknown flag -x'],
  [['no such program'], 1, 'st-moe launch: cannot start "no such program": spawn no such program ENOENT'],
])('refuses %j', async (args, code, message) => {
  expectRefused(await cli(['launch', ...args]), code, message)
})

test('passes a signal on and returns the exit code that the processes choose', async () => {
  const child = launch('-n', '2', 'sh', '-c', `trap 'echo caught; exit 9' TERM; echo ready; ${loop}`)
  const ended = endOf(child)
  await Promise.all([printed(child, '[0] ready'), printed(child, '[1] ready')])
  child.kill('SIGTERM')
  const { code, out } = await ended
  expect(code).toBe(9)
  expect(out).toContain('[0] caught')
  expect(out).toContain('[1] caught')
})

test('a second signal ends processes that ignore the first', async () => {
  const child = launch('-n', '2', '--grace', '1000', 'sh', '-c', `trap '' INT; echo ready $$; ${loop}`)
  const ended = endOf(child)
  await Promise.all([printed(child, '[0] ready'), printed(child, '[1] ready')])
  child.kill('SIGINT')
  await new Promise((resolve) => setTimeout(resolve, 700))
  expect(child.exitCode).toBeNull()
  child.kill('SIGINT')
  const { code, out } = await ended
  expect(code).toBe(137)
  await expectEnded([...out.matchAll(/ready (\d+)/g)].map(([, pid]) => Number(pid)))
})

test('a closed pipe ends the job', async () => {
  const child = launch('-n', '2', '--grace', '0.05', 'sh', '-c', 'while :; do echo $$; sleep 0.01; done')
  const ended = endOf(child)
  await printed(child, '\n')
  child.stdout.destroy()
  const { out } = await ended
  await expectEnded([...out.matchAll(/\] (\d+)/g)].map(([, pid]) => Number(pid)))
})
