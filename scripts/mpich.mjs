// Unpacks MPICH from the wheels of PyPI, pinned by mpich-requirements.txt, for the packages @st-moe/mpich-<system> of
// pack.mjs: the library with the standard ABI, what it loads, and their licences, but no compilers and headers.
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { unpackWheels } from './python.mjs'
import { mpichSystems } from './targets.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const requirements = readFileSync(path.join(root, 'scripts/mpich-requirements.txt'), 'utf8')

/** The library alone, without those of MPICH's own ABI and of Fortran, and without files for linkers. */
const isNeeded = (name) =>
  /^lib\/(libp?mpi_abi\.(so\.1|1\.dylib)|mpich\/.*\.so(\.\d+)*)$/.test(name) || /^licenses\//.test(name)

/** The files of the package of a system: from → to, below the root and below the package. Downloads it once. */
export function mpichFiles(system) {
  const folder = path.join('build/mpich', system)
  const done = path.join(root, folder, 'unpacked.txt')
  if (!existsSync(done) || readFileSync(done, 'utf8') !== requirements) {
    rmSync(path.join(root, folder), { recursive: true, force: true })
    unpackWheels(path.join(root, folder), mpichSystems[system], [requirements])
    writeFileSync(done, requirements)
  }
  const files = readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(path.join(root, folder), path.join(entry.parentPath, entry.name)))
    .map((name) => [name, name.replace(/^mpich-[^/]*\.data\/data\//, '').replace(/^mpich-[^/]*\.dist-info\//, '')])
    .filter(([, to]) => isNeeded(to))
  if (!files.some(([, to]) => to.startsWith('lib/libmpi_abi.')) || !files.some(([, to]) => to === 'licenses/LICENSE'))
    throw new Error(`mpich: the wheel for ${system} has no library, or no licence`)
  return Object.fromEntries(files.map(([name, to]) => [path.join(folder, name), to]))
}

/** The version of MPICH. */
export const mpichVersion = /^mpich==(\S+)/m.exec(requirements)[1]
