// The part of vitest's interface that the suite uses, on any Node: vitest's own runner and assertions without its
// bundler, which has no build for every system. Runs the test files that the command line names.
import { setTimeout } from 'node:timers/promises'
import {
  ASYMMETRIC_MATCHERS_OBJECT,
  customMatchers,
  GLOBAL_EXPECT,
  getState,
  JestAsymmetricMatchers,
  JestChaiExpect,
  JestExtend,
  setState,
} from '@vitest/expect'
import { startTests } from '@vitest/runner'
import * as chai from 'chai'
import { patience } from '../support/patience.ts'

export { afterAll, afterEach, beforeAll, beforeEach, describe, it, onTestFinished, test } from '@vitest/runner'

chai.use(JestExtend)
chai.use(JestChaiExpect)
chai.use(JestAsymmetricMatchers)
export const expect = (value, message) => chai.expect(value, message)
Object.assign(expect, chai.expect, globalThis[ASYMMETRIC_MATCHERS_OBJECT])
expect.getState = () => getState(expect)
expect.setState = (state) => setState(state, expect)
globalThis[GLOBAL_EXPECT] = expect
setState({ assertionCalls: 0, isExpectingAssertions: false, expectedAssertionsNumber: null }, expect)
chai.expect.extend(expect, customMatchers)

/** Asks for the value again until the matcher holds, for at most `timeout` ms. */
expect.poll = (read, { timeout = patience, interval = 50 } = {}) =>
  new Proxy(
    {},
    {
      get:
        (_, matcher) =>
        async (...expected) => {
          for (const end = performance.now() + timeout; ; await setTimeout(interval)) {
            try {
              return expect(await read())[matcher](...expected)
            } catch (error) {
              if (performance.now() > end) throw error
            }
          }
        },
    },
  )

/** Runs the files and prints each failure, and the counts at the end. */
export async function run(files) {
  const runner = {
    config: {
      root: process.cwd(),
      setupFiles: [],
      passWithNoTests: false,
      sequence: { hooks: 'stack', setupFiles: 'list', concurrent: false, shuffle: false, seed: 0 },
      chaiConfig: {},
      maxConcurrency: 1,
      testTimeout: patience + 60_000, // what a test polls is given up first
      hookTimeout: patience + 60_000,
      retry: 0,
      includeTaskLocation: false,
      diffOptions: {},
      tags: [],
      tagsFilter: undefined,
      strictTags: false,
    },
    importFile: (file) => import(file),
  }
  const counts = { pass: 0, fail: 0, skip: 0 }
  const visit = (task, path) => {
    for (const error of task.result?.errors ?? []) console.log(`FAILED ${path}\n${error.stack ?? error.message}`)
    if (task.tasks) {
      if (task.result?.errors?.length) counts.fail++ // in a hook, or while the file was read
      for (const child of task.tasks) visit(child, `${path} > ${child.name}`)
    } else counts[task.result?.state ?? 'skip']++
  }
  for (const file of await startTests(files, runner)) visit(file, file.name)
  console.log(`${counts.pass} passed, ${counts.fail} failed, ${counts.skip} skipped`)
  return counts.fail === 0 && counts.pass > 0
}
