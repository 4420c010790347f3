import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { TestContext } from 'vitest'
import { pythonWith } from '../../scripts/python.mjs'
import { locked } from './python.js'

/** An MPI library of a wheel, and its launcher. */
export interface Mpi {
  library: string
  mpiexec: string
}

type Found = Mpi | { reason: string }
const found = new Map<string, Found>()

/** The library of a package of PyPI, in an environment of its own in build/. Where it cannot be installed: why. */
function install(name: 'mpich' | 'impi'): Found {
  try {
    const bin = dirname(pythonWith(`${name}-requirements.txt`, `${name}-venv`))
    const file = process.platform === 'darwin' ? 'libmpi_abi.1.dylib' : 'libmpi_abi.so.1'
    const library = join(dirname(bin), 'lib', file)
    if (!existsSync(library)) throw new Error(`there is no ${library}`)
    return { library, mpiexec: join(bin, 'mpiexec') }
  } catch (error) {
    return { reason: (error as Error).message }
  }
}

/** The library. Without it: an error in CI, elsewhere a skip that is counted and says why. */
export function mpiFor(context: TestContext, name: 'mpich' | 'impi'): Mpi {
  if (!found.has(name))
    found.set(
      name,
      locked(() => install(name), fileURLToPath(new URL(`../../build/${name}-venv`, import.meta.url))),
    )
  const mpi = found.get(name)!
  if ('library' in mpi) return mpi
  if (process.env.CI && process.platform === 'linux' && process.arch === 'x64')
    throw new Error(`${name} must be there in CI: ${mpi.reason}`)
  return context.skip(mpi.reason)
}
