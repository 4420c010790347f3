// Which test files run where. vitest.config.ts and the runner of other systems ask it.
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** The folders of test/ whose tests start programs. The tests of all others are those of the library. */
export const programFolders = [
  'build',
  'bench',
  'cli',
  'crash',
  'cuda',
  'distributed',
  'docs',
  'package',
  'python',
  'training',
]

/**
 * The files whose first line says that they do not run in a place, such as `// Not on the emulator: one thread only.`
 * The places: `on the emulator`, `under sanitizers` and `on other systems`; several are joined by ` or `.
 */
export function exceptionsOf(place) {
  return testFiles().flatMap((file) => {
    const [, places, reason] = /^\/\/ Not (.*?): (.*)/.exec(readFileSync(path.join(root, file), 'utf8')) ?? []
    return places?.split(' or ').includes(place) ? [{ file, reason }] : []
  })
}

/** The files of the library that share a process. */
export const libraryFiles = () =>
  testFiles().filter((file) => !programFolders.includes(file.split('/')[1]) && !file.endsWith('.own.test.ts'))

const testFiles = () =>
  readdirSync(path.join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.test.ts'))
    .map((name) => `test/${name.replaceAll('\\', '/')}`)
    .sort()
