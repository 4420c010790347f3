import { type ChildProcess, spawn } from 'node:child_process'

export interface Ended {
  code: number | null
  signal: NodeJS.Signals | null
  out: string
  err: string
}

const interrupt = new URL('../children/interrupt.mjs', import.meta.url).href

/** Runs a Node program; SIGINT comes as soon as it prints `interruptAt`. */
export function runProgram(
  args: readonly string[],
  { interruptAt, cwd, env }: { interruptAt?: string; cwd?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<Ended> {
  const interrupted = interruptAt === undefined ? [] : ['--import', interrupt]
  const child = spawn(process.execPath, [...interrupted, ...args], {
    cwd,
    env: { ...(env ?? process.env), INTERRUPT_AT: interruptAt },
  })
  return endOf(child)
}

/** How a process ends, and what it prints until then. */
export function endOf(child: ChildProcess): Promise<Ended> {
  let [out, err] = ['', '']
  child.stdout!.on('data', (data) => {
    out += data
  })
  child.stderr!.on('data', (data) => {
    err += data
  })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, out, err }))
  })
}

/**
 * Resolves as soon as a program has printed `text`, in however many pieces; rejects where it ends before. Goes on
 * reading.
 */
export function printed(child: ChildProcess, text: string): Promise<void> {
  let out = ''
  return new Promise((resolve, reject) => {
    child.stdout!.on('data', (data) => {
      out += data
      if (out.includes(text)) resolve()
    })
    child.once('close', () => reject(new Error(`it ended before it printed '${text}': ${out.slice(-2000)}`)))
  })
}
