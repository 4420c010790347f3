import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** A test file that a lane leaves out, and why. */
interface Exception {
  file: string
  reason: string
}

/**
 * The files whose first line says that they do not run in a place, such as `// Not on the emulator: one thread only.`
 * The places: `on the emulator`, `under sanitizers` and `on other systems`.
 */
export function exceptionsOf(place: string): Exception[] {
  const files = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
  return files
    .filter((name) => name.endsWith('.test.ts'))
    .map((name) => join('test', name).replaceAll('\\', '/'))
    .flatMap((file) => {
      const [first] = readFileSync(join(root, file), 'utf8').split('\n', 1)
      const [, places, reason] = /^\/\/ Not (.*?): (.*)$/.exec(first) ?? []
      return places?.split(' or ').includes(place) ? [{ file, reason }] : []
    })
}
