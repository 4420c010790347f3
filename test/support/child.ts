import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { patience } from './patience.js'

export interface ChildResult {
  /** null if a signal ended the process. */
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

/** Under a sanitizer a process cannot be limited: shadow memory takes terabytes of address space. */
export const sanitized = process.env.ST_MOE_TEST_SANITIZED === '1'

/** What runs a Node of another system, if one must be named: see test/platforms/run.mjs. */
const emulator = process.env.ST_MOE_TEST_EMULATOR?.split(' ') ?? []

/** Such an emulator is far slower than the machine, and has memory of its own. */
export const emulated = emulator.length > 0

/** Runs a script of test/children with Node and returns how it ended. Children import the built package. */
export function runChild(
  script: string,
  args: readonly string[] = [],
  options: {
    env?: Record<string, string>
    nodeArgs?: readonly string[]
    cwd?: string
    limitKb?: number
  } = {},
): Promise<ChildResult> {
  const file = fileURLToPath(new URL(`../children/${script}`, import.meta.url))
  const command = [...emulator, process.execPath, ...(options.nodeArgs ?? []), file, ...args]
  const limited = options.limitKb === undefined ? [] : ['sh', '-c', `ulimit -v ${options.limitKb}; exec "$0" "$@"`]
  const [program, ...rest] = [...limited, ...command]
  const child = spawn(program, rest, {
    env: { ...process.env, ...options.env },
    cwd: options.cwd,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: patience,
    killSignal: 'SIGKILL',
  })
  const chunks = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8')
    child[name].on('data', (text: string) => {
      chunks[name] += text
    })
  }
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, signal) => resolve({ code, signal, ...chunks }))
  })
}
