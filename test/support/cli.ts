import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect } from 'vitest'
import { root } from './blocks.js'
import { type Ended, endOf, runProgram } from './program.js'
import { sentences } from './sentences.js'

/** The built program st-moe in a folder with a text and a run. */

export const bin = join(root, 'dist/cli.js')
export const tiny = '--layers 1 --dim 16 --heads 2 --experts 4 --context 16 --batch 2 --threads 1'.split(' ')
export let folder: string
export const at = (name: string): string => join(folder, name)

/** Without a CUDA plugin. */
const env = { ...process.env, ST_MOE_CUDA_LIBRARY: '/nowhere.so' }
let shared: ChildProcess
let sharedEnded: Promise<Ended>

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'st-moe-cli-'))
  writeFileSync(at('book.txt'), sentences(100))
  const script = fileURLToPath(new URL('../children/command-lines.mjs', import.meta.url))
  shared = fork(script, { cwd: folder, env, silent: true })
  sharedEnded = endOf(shared)
  await succeeded(['train', 'book.txt', '--out', 'run', '--steps', '30', ...tiny])
})

afterAll(async () => {
  shared.send({})
  expect(await sharedEnded).toEqual({ code: 0, signal: null, out: '', err: '' })
  rmSync(folder, { recursive: true, force: true })
})

/** Runs it in its own process, which receives SIGINT as soon as it prints `interruptAt`. */
export const cliAlone = (args: readonly string[], interruptAt?: string): Promise<Ended> =>
  runProgram([bin, ...args], { cwd: folder, interruptAt, env })

let last: Promise<unknown> = Promise.resolve()

/** Runs it in the process of test/children/command-lines.mjs, where it takes a fraction of the time of its own process. */
export function cli(args: readonly string[]): Promise<Ended> {
  const answer = last.then(async () => {
    shared.send({ args })
    const [ended] = await Promise.race([once(shared, 'message'), sharedEnded.then((end) => [end])])
    return { ...(ended as Ended), signal: null }
  })
  last = answer
  return answer
}

export async function succeeded(args: readonly string[]): Promise<string> {
  const { code, out, err } = await cli(args)
  expect({ code, err }).toEqual({ code: 0, err: '' })
  return out
}

/** The tensors in the checkpoint of a run; its header also holds times. */
export function weights(run: string): Buffer {
  const bytes = readFileSync(at(`${run}/checkpoint.safetensors`))
  return bytes.subarray(8 + Number(bytes.readBigUInt64LE()))
}

/** One line, or two with a pointer to the help for an invalid command line; no stack trace. */
export function expectRefused({ code, out, err }: Ended, expected: 1 | 2, message: string | RegExp): void {
  expect(err).toMatch(message)
  expect(code).toBe(expected)
  expect(err.trimEnd().split('\n')).toHaveLength(expected)
  expect(err).not.toContain('    at ')
  expect(out).toBe('')
}

export const jsonLines = (text: string) =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
