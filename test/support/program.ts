import { spawn } from 'node:child_process'

export interface Ended {
  code: number | null
  signal: NodeJS.Signals | null
  out: string
  err: string
}

/** Runs a Node program; sends SIGINT as soon as it prints `interruptAt`. */
export function runProgram(
  args: readonly string[],
  { interruptAt, cwd, env }: { interruptAt?: string; cwd?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<Ended> {
  const child = spawn(process.execPath, args, { cwd, env: env ?? process.env })
  let [out, err, sent] = ['', '', false]
  child.stdout.on('data', (data) => {
    out += data
    if (interruptAt === undefined || sent || !out.includes(interruptAt)) return
    sent = true
    child.kill('SIGINT')
  })
  child.stderr.on('data', (data) => {
    err += data
  })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, out, err }))
  })
}
