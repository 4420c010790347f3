import { availableParallelism } from 'node:os'
import { defineConfig } from 'vitest/config'
import { writeNativeOps } from './scripts/native-ops.mjs'
import { patience } from './test/support/patience.js'

writeNativeOps() // of another branch, they could differ

export default defineConfig({
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
