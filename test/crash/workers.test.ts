import { describe, expect, it } from 'vitest'
import { runChild } from '../support/child.js'

/** How the process ends, and what it prints, for a scenario of test/children/workers.mjs. */
const expected: Record<string, { code: number; result?: unknown }> = {
  terminate: { code: 0, result: [1] },
  exitInStep: { code: 7 },
  exitInAsyncStep: { code: 8 },
  naturalAsync: { code: 0, result: true },
  abandoned: { code: 0, result: 1 },
  exitWhileWorkersCompute: { code: 3 },
  natural: { code: 0, result: [true, 0] },
  together: { code: 0, result: [true, true] },
  cycles: { code: 0, result: [0, true] },
  exitInWorker: { code: 0, result: [9, true] },
  errorInWorker: { code: 0, result: [true, 'SHAPE', 1] },
  messages: { code: 0, result: ['DataCloneError', 'OPTION', false, 2] },
}

describe('workers and the end of the process', () => {
  for (const [scenario, { code, result }] of Object.entries(expected)) {
    it(scenario, async () => {
      const ended = await runChild('workers.mjs', [scenario])
      const printed = ended.stdout ? JSON.parse(ended.stdout) : undefined
      expect({ code: ended.code, signal: ended.signal, printed }, ended.stderr).toEqual({
        code,
        signal: null,
        printed: result,
      })
      expect(ended.stderr).toBe('')
    })
  }
})
