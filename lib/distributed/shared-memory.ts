import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const folder = '/dev/shm'

/**
 * Removes the shared memory that a library has left of a job whose processes were killed before they could. In MPICH its
 * name contains the 32-bit FNV-1a hash of the name of the job. Processes of Intel MPI tell each other the path, in
 * hexadecimal digits: it is among `values`.
 */
export function removeSharedMemory(job: string, values: Iterable<string>): void {
  const prefix = `mpich_shm_${hashOf(job).toString(16)}_`
  const ofIntel = Array.from(values, (value) => {
    const path = Buffer.from(value, 'hex').toString('latin1')
    return /^\/dev\/shm\/(Intel_MPI_\w+)\0*$/.exec(path)?.[1]
  })
  for (const name of namesIn(folder))
    if (name.startsWith(prefix) || ofIntel.includes(name)) rmSync(join(folder, name), { force: true })
}

function hashOf(text: string): number {
  let hash = 2_166_136_261
  for (const byte of Buffer.from(text)) hash = Math.imul(hash ^ byte, 16_777_619) >>> 0
  return hash
}

function namesIn(path: string): string[] {
  try {
    return readdirSync(path)
  } catch {
    return [] // other systems have no such folder
  }
}
