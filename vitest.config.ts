import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'
import { writeNativeOps } from './scripts/native-ops.mjs'
import { patience } from './test/support/patience.js'

writeNativeOps() // of another branch, they could differ

// ST_MOE_TEST_BUILT=1 runs files that use only the public faces on what the package has, dist/, instead of the sources.
const built = (folder: string, entry: string) => ({
  find: new RegExp(`^(?:\\.\\./)+${folder}/index\\.js$`),
  replacement: fileURLToPath(new URL(`dist/${entry}.js`, import.meta.url)),
})
const alias = process.env.ST_MOE_TEST_BUILT ? [built('lib', 'index'), built('language-model', 'language-model')] : []

export default defineConfig({
  resolve: { alias },
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    maxWorkers: availableParallelism(), // one less by default: half of two
    setupFiles: ['test/support/device.ts'],
    // a program that a test waits for is given up first
    testTimeout: patience + 60_000,
    hookTimeout: patience + 60_000,
    expect: { poll: { timeout: patience } },
  },
})
