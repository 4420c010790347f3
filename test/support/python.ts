import { type SpawnSyncReturns, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { TestContext } from 'vitest'

const venv = fileURLToPath(new URL('../../build/parity-venv', import.meta.url))
const requirements = fileURLToPath(new URL('../python/parity-requirements.txt', import.meta.url))
const ownPython = join(venv, process.platform === 'win32' ? 'Scripts/python.exe' : 'bin/python')
/** Holds the requirements that the environment was made for. */
const ready = join(venv, 'ready')

/** Time for a download of PyTorch by a slow line, and for the reference, which takes minutes on a busy machine. */
export const pythonPatience = 45 * 60_000

/** A Python, or why there is none. */
type Found = { python: string } | { reason: string }

function run(command: string, args: readonly string[]): SpawnSyncReturns<string> {
  return spawnSync(command, args, { encoding: 'utf8', timeout: pythonPatience / 2, maxBuffer: 2 ** 26 })
}

const failure = ({ error, stderr, status }: SpawnSyncReturns<string>): string =>
  error ? error.message : `exit code ${status}: ${stderr.trim().split('\n').slice(-3).join(' | ')}`

/**
 * A Python that has the reference package: ST_MOE_PYTHON, or one in build/parity-venv, which is made where it is not
 * there yet. Where that fails the reason comes instead.
 */
export function referencePython(): Found {
  const given = process.env.ST_MOE_PYTHON
  return given ? { python: given } : locked(() => install(ownPython))
}

/** The same Python if it has these modules, which are too large to be installed for a test. */
export function pythonWith(modules: readonly string[]): Found {
  const python = process.env.ST_MOE_PYTHON ?? ownPython
  const missing = '" ".join(m for m in sys.argv[1:] if not find_spec(m))'
  const script = `import sys; from importlib.util import find_spec; sys.exit(${missing} or 0)`
  const result = run(python, ['-c', script, ...modules])
  return result.status === 0 ? { python } : { reason: `modules that ${python} does not have: ${failure(result)}` }
}

function install(python: string): Found {
  const wanted = readFileSync(requirements, 'utf8')
  if (existsSync(ready) && readFileSync(ready, 'utf8') === wanted) return { python }
  rmSync(ready, { force: true })
  const made = run('python3', ['-m', 'venv', venv])
  if (made.status !== 0) return { reason: `python3 -m venv: ${failure(made)}` }
  const installed = run(python, ['-m', 'pip', 'install', '--quiet', '--requirement', requirements])
  if (installed.status !== 0) return { reason: `pip install --requirement ${requirements}: ${failure(installed)}` }
  writeFileSync(ready, wanted)
  return { python }
}

/** One process at a time makes an environment: test files run beside each other. The lock holds its owner's number. */
export function locked<T>(fn: () => T, environment = venv): T {
  const lock = `${environment}.lock`
  mkdirSync(dirname(lock), { recursive: true })
  while (!tryLock(lock)) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500)
  try {
    return fn()
  } finally {
    rmSync(lock, { force: true })
  }
}

function tryLock(lock: string): boolean {
  try {
    writeFileSync(lock, String(process.pid), { flag: 'wx' })
    return true
  } catch {
    if (isDead(lock)) rmSync(lock, { force: true })
    return false
  }
}

/** Whether the owner was killed before it could remove its lock. */
function isDead(lock: string): boolean {
  try {
    process.kill(Number(readFileSync(lock, 'utf8')) || process.pid, 0)
    return false
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH'
  }
}

/** The reference's Python. Without one: an error in CI, elsewhere a skip that is counted and says why. */
export function pythonFor(context: TestContext, found: Found): string {
  if ('python' in found) return found.python
  if (process.env.CI) throw new Error(`the reference package must be there in CI: ${found.reason}`)
  return context.skip(found.reason)
}
