import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { afterAll } from 'vitest'

/**
 * A function that runs scripts of test/python, all of a test file in one process; a traceback is the message of its error.
 * Called where the tests are declared: the process ends after them.
 */
export function scriptRunner() {
  let server: ChildProcessByStdio<Writable, Readable, null> | undefined
  let answers: AsyncIterator<string> | undefined
  afterAll(async () => {
    if (!server) return
    const closed = once(server, 'close')
    server.stdin.end()
    await closed
  })
  return async (python: string, name: string, ...args: string[]): Promise<void> => {
    if (!server) {
      const script = fileURLToPath(new URL('../python/serve.py', import.meta.url))
      server = spawn(python, [script], { stdio: ['pipe', 'pipe', 'inherit'] })
      answers = createInterface(server.stdout)[Symbol.asyncIterator]()
    }
    server.stdin.write(`${JSON.stringify([name, ...args])}\n`)
    const { value = '"Python has ended"' } = await answers!.next()
    const traceback: string | null = JSON.parse(value)
    if (traceback !== null) throw new Error(`${name} ${args.join(' ')}: ${traceback}`)
  }
}

export type RunScript = ReturnType<typeof scriptRunner>
