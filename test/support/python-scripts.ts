import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { afterAll } from 'vitest'
import type { End } from './blocks.js'

/**
 * A function that runs scripts of test/python, all of a test file in one process; it returns what the script prints, and
 * a traceback is the message of its error. Called where the tests are declared: the process ends after them.
 */
export function scriptRunner() {
  const run = programRunner()
  return async (python: string, name: string, ...args: string[]): Promise<string> => {
    const { stdout, stderr } = await run(python, [name, ...args], null)
    if (stderr !== '') throw new Error(`${name} ${args.join(' ')}: ${stderr}`)
    return stdout
  }
}

export type RunScript = ReturnType<typeof scriptRunner>

/** The same for any script and its arguments, in a folder; returns how it ends. */
export function programRunner() {
  let server: ChildProcessByStdio<Writable, Readable, null> | undefined
  let answers: AsyncIterator<string> | undefined
  afterAll(async () => {
    if (!server) return
    const closed = once(server, 'close')
    server.stdin.end()
    await closed
  })
  return async (python: string, command: readonly string[], folder: string | null): Promise<End> => {
    if (!server) {
      const script = fileURLToPath(new URL('../python/serve.py', import.meta.url))
      server = spawn(python, [script], { stdio: ['pipe', 'pipe', 'inherit'] })
      answers = createInterface(server.stdout)[Symbol.asyncIterator]()
    }
    server.stdin.write(`${JSON.stringify([command, folder])}\n`)
    const { value = '["", "Python has ended"]' } = await answers!.next()
    const [stdout, traceback]: [string, string | null] = JSON.parse(value)
    return { stdout, stderr: traceback ?? '', failed: traceback !== null }
  }
}
