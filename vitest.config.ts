import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'
import { writeNativeOps } from './scripts/native-ops.mjs'
import { patience } from './test/support/patience.js'
import { exceptionsOf, programFolders } from './test/support/projects.mjs'

writeNativeOps() // of another branch, they could differ

const { ST_MOE_TEST_BUILT: built, ST_MOE_TEST_DEVICE: device, ST_MOE_TEST_SANITIZED: sanitized } = process.env

// ST_MOE_TEST_BUILT=1 runs files that use only the public faces on what the package has, dist/, instead of the sources.
const distributed = (folder: string, entry: string) => ({
  find: new RegExp(`^(?:\\.\\./)+${folder}/index\\.js$`),
  replacement: fileURLToPath(new URL(`dist/${entry}.js`, import.meta.url)),
})

/** The folders of programs that run here: a lane of another device, or of a sanitizer, runs one. */
const here = device ? ['training'] : sanitized ? ['crash'] : programFolders
const within = (names: string[]) => names.map((name) => `test/${name}/**/*.test.ts`)

/** Tests of the library that replace modules, or load it twice, and so need a process of their own. */
const own = 'test/**/*.own.test.ts'

const exceptions = [
  ...(device ? exceptionsOf('on the emulator') : []),
  ...(sanitized ? exceptionsOf('under sanitizers') : []),
]
if (!process.env.ST_MOE_TEST_SAID)
  // this file is read once per project
  for (const { file, reason } of exceptions) console.log(`left out: ${file}: ${reason}`)
process.env.ST_MOE_TEST_SAID = '1'
const left = exceptions.map(({ file }) => file)

export default defineConfig({
  resolve: { alias: built ? [distributed('lib', 'index'), distributed('language-model', 'language-model')] : [] },
  test: {
    projects: [
      {
        extends: true,
        test: {
          name: 'library',
          include: ['test/**/*.test.ts'],
          exclude: [...within(programFolders), own, ...left],
          isolate: false, // loading the library takes longer than most files
          setupFiles: ['test/support/device.ts', 'test/support/fresh.ts'],
        },
      },
      {
        extends: true,
        test: {
          name: 'processes',
          include: [...within(here), own],
          exclude: left,
          globalSetup: ['test/support/built.ts'],
          setupFiles: ['test/support/device.ts'],
        },
      },
    ],
    pool: 'forks',
    maxWorkers: availableParallelism(), // one less by default: half of two
    // a program that a test waits for is given up first
    testTimeout: patience + 60_000,
    hookTimeout: patience + 60_000,
    expect: { poll: { timeout: patience } },
  },
})
