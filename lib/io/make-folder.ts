import { mkdirSync, statSync } from 'node:fs'
import { dirname } from 'node:path'

/** Creates one folder at a time, because Node's recursive mkdir never returns under /proc. */
export function makeFolder(path: string): void {
  try {
    mkdirSync(path)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST' && statSync(path).isDirectory()) return
    if (code === 'EEXIST') throw new Error('not a folder')
    if (code !== 'ENOENT' || dirname(path) === path) throw error
    makeFolder(dirname(path))
    mkdirSync(path)
  }
}
