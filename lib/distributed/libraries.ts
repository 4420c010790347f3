import { basename, join } from 'node:path'
import { folderOf } from '../runtime/addon.js'
import { damageOf, sonameOf } from '../runtime/library-file.js'
import { native } from '../runtime/native.js'
import { notPublished } from '../runtime/published.js'

/** The environment variable that names the MPI library. */
const variable = 'ST_MOE_MPI_LIBRARY'
const files: Partial<Record<NodeJS.Platform, string>> = { win32: 'mpi_abi.dll', darwin: 'libmpi_abi.1.dylib' }
const fileName = files[process.platform] ?? 'libmpi_abi.so.1'
const packageName = `@st-moe/mpich-${process.platform}-${process.arch}`

/** A place of the search: a file, or why there is none. */
interface Place {
  readonly name: string
  readonly file: string | null
  readonly missing?: string
}

/** An MPI library that can be used, or the places that were tried, each with its error. */
export type FoundLibrary = { path: string; version: string } | { tried: string[] }

/**
 * Opens the first library that can be used: `given`, else that of ST_MOE_MPI_LIBRARY, and no other; without both that of
 * the package, of the loader's path, and of the active Python environment. Does not initialize MPI.
 */
export function findLibrary(given?: string): FoundLibrary {
  const tried: string[] = []
  for (const { name, file, missing } of placesOf(given)) {
    const fault = file === null ? missing! : faultOf(file)
    if (fault !== null) {
      tried.push(`${name}: ${fault}`)
      continue
    }
    const { version, reason } = native.probeProcessLibrary(file!)
    if (reason === '') return { path: file!, version }
    tried.push(`${name}: ${reason.replace(`${file}: `, '')}`)
  }
  return { tried }
}

function placesOf(given: string | undefined): Place[] {
  if (given !== undefined) return [{ name: given, file: given }]
  const chosen = process.env[variable]
  if (chosen) return [{ name: `${variable}=${chosen}`, file: chosen }]
  const installed = folderOf(packageName)
  return [
    installed
      ? fileIn(join(installed, 'lib'))
      : { name: packageName, file: null, missing: 'this package is not installed' },
    { name: fileName, file: fileName },
    ...pythonPlaces(),
  ]
}

const fileIn = (folder: string): Place => ({ name: join(folder, fileName), file: join(folder, fileName) })

function pythonPlaces(): Place[] {
  const folders = ['VIRTUAL_ENV', 'CONDA_PREFIX'].flatMap((name) => process.env[name] || [])
  if (folders.length === 0) return [{ name: 'Python', file: null, missing: 'no environment is active' }]
  return folders.map((folder) =>
    fileIn(process.platform === 'win32' ? join(folder, 'Library', 'bin') : join(folder, 'lib')),
  )
}

/** Why a file must not be opened. A name without a folder is looked up by the loader. */
function faultOf(file: string): string | null {
  if (basename(file) === file) return null
  const damage = damageOf(file)
  if (damage !== null) return damage
  const soname = sonameOf(file)
  if (soname === null || /^libmpi_abi\.so/.test(soname) || !/^libmpi\.so/.test(soname)) return null
  return `${soname} has the ABI of its implementation; ${fileName} of the same implementation has the standard one of MPI 5.0`
}

/** The command that installs a library. */
export const installCommand = `pip install mpich, in an active Python environment; ${notPublished(packageName)}`
