import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const dist = new URL('../../dist/index.js', import.meta.url)

/** Starts Node on a piece of code that imports the built package as `st`. */
export function startNode(code: string, args: readonly string[] = []): ChildProcess {
  if (!existsSync(fileURLToPath(dist))) throw new Error('dist/ is missing: run npm run build:ts')
  const whole = `import * as st from ${JSON.stringify(dist.href)}\n${code}`
  return spawn(process.execPath, ['--input-type=module', '-e', whole, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
}

/** Runs it to its end and gives what it printed; another exit code than 0 is an error. */
export function runNode(code: string, args: readonly string[] = []): Promise<string> {
  const child = startNode(code, args)
  let output = ''
  child.stdout!.on('data', (chunk) => {
    output += chunk
  })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (exit, signal) =>
      exit === 0 ? resolve(output) : reject(new Error(`the child process ended with ${exit ?? signal}`)),
    )
  })
}
