import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'
import { writeNativeOps } from './scripts/native-ops.mjs'
import { exceptionsHere } from './test/support/exceptions.js'
import { patience } from './test/support/patience.js'

writeNativeOps() // of another branch, they could differ

// ST_MOE_TEST_BUILT=1 runs files that use only the public faces on what the package has, dist/, instead of the sources.
const built = (folder: string, entry: string) => ({
  find: new RegExp(`^(?:\\.\\./)+${folder}/index\\.js$`),
  replacement: fileURLToPath(new URL(`dist/${entry}.js`, import.meta.url)),
})
const alias = process.env.ST_MOE_TEST_BUILT ? [built('lib', 'index'), built('language-model', 'language-model')] : []

/** The folders whose tests start programs; those of any other folder test the library in their own process. */
const processes = ['build', 'bench', 'cli', 'crash', 'cuda', 'docs', 'package', 'python'].map(
  (folder) => `test/${folder}/**/*.test.ts`,
)
const exceptions = exceptionsHere()
for (const { file, reason } of exceptions) console.log(`left out: ${file}: ${reason}`)

export default defineConfig({
  resolve: { alias },
  test: {
    projects: [
      {
        extends: true,
        test: {
          name: 'library',
          include: ['test/**/*.test.ts'],
          exclude: [...processes, ...exceptions.map(({ file }) => file)],
        },
      },
      { extends: true, test: { name: 'processes', include: processes } },
    ],
    pool: 'forks',
    maxWorkers: availableParallelism(), // one less by default: half of two
    setupFiles: ['test/support/device.ts'],
    // a program that a test waits for is given up first
    testTimeout: patience + 60_000,
    hookTimeout: patience + 60_000,
    expect: { poll: { timeout: patience } },
  },
})
