import { type SpawnSyncReturns, spawnSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const venv = fileURLToPath(new URL('../../build/parity-venv', import.meta.url))
const packages = ['st-moe-pytorch==0.1.8', 'torch', 'safetensors', 'numpy']
const ready = join(venv, 'ready')

function run(command: string, args: readonly string[]): SpawnSyncReturns<string> {
  return spawnSync(command, args, { encoding: 'utf8', timeout: 20 * 60_000, maxBuffer: 2 ** 26 })
}

const failure = ({ error, stderr, status }: SpawnSyncReturns<string>): string =>
  error ? error.message : `exit code ${status}: ${stderr.trim().split('\n').slice(-3).join(' | ')}`

/**
 * A Python that has the reference package: ST_MOE_PYTHON, or one in build/parity-venv, which is made where it is not
 * there yet. Where that fails the reason comes instead.
 */
export function referencePython(): { python: string } | { reason: string } {
  const given = process.env.ST_MOE_PYTHON
  if (given) return { python: given }
  const python = join(venv, process.platform === 'win32' ? 'Scripts/python.exe' : 'bin/python')
  if (existsSync(ready)) return { python }
  const made = run('python3', ['-m', 'venv', venv])
  if (made.status !== 0) return { reason: `python3 -m venv: ${failure(made)}` }
  const installed = run(python, ['-m', 'pip', 'install', '--quiet', ...packages])
  if (installed.status !== 0) return { reason: `pip install ${packages.join(' ')}: ${failure(installed)}` }
  writeFileSync(ready, packages.join('\n'))
  return { python }
}

/** Runs test/parity.py; its traceback is the message of the error. */
export function runParity(python: string, ...args: string[]): void {
  const script = fileURLToPath(new URL('../parity.py', import.meta.url))
  const result = run(python, [script, ...args])
  if (result.status !== 0) throw new Error(`parity.py ${args.join(' ')}: ${result.error?.message ?? result.stderr}`)
}
