import { defineConfig } from 'vitest/config'
import { patience } from './test/support/patience.js'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    setupFiles: ['test/support/device.ts'],
    // a program that a test waits for is given up first
    testTimeout: patience + 60_000,
    hookTimeout: patience + 60_000,
  },
})
