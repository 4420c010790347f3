import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { emptyHistory, type History, historySchema, recordEvaluation, recordStep } from '../../cli/trainer/history.js'
import { ngramLosses } from '../../cli/trainer/ngram.js'
import { textProgress } from '../../cli/trainer/progress.js'
import { CharacterTokenizer, LanguageModel } from '../../language-model/index.js'
import { trainingBytes } from '../../language-model/sizes.js'
import { long } from '../support/numbers.js'

describe('the history of a run', () => {
  /** Loss rises by 1 each step; one expert gets more and more. */
  const entry = (step: number) => ({
    ...{ loss: step, dropped: 0.5, learningRate: step / 1e6, stepSeconds: 0.25 },
    load: [[step / 1e5, 1 - step / 1e5]],
  })
  const recorded = (steps: number, reload = false): History => {
    let history = emptyHistory()
    for (let step = 0; step < steps; step++) {
      recordStep(history, entry(step))
      if (reload && step % 1000 === 77) history = JSON.parse(JSON.stringify(history))
    }
    return history
  }

  test('of some thousand steps has each of them', () => {
    const history = recorded(4096)
    expect(history.stride).toBe(1)
    expect(history.loss).toEqual(Array.from({ length: 4096 }, (_, i) => i))
  })

  test('of many steps has means of intervals, and continues exactly from a file', () => {
    const history = recorded(20_003)
    expect(history).toMatchObject({ steps: 20_003, stride: 8 })
    expect(history.loss).toHaveLength(2501)
    for (const [i, loss] of history.loss.entries()) {
      const length = Math.min(8, 20_003 - i * 8)
      expect(Math.abs(loss - (i * 8 + (length - 1) / 2))).toBeLessThan(1) // five digits are kept
      expect(history.load[i][0][0]).toBeCloseTo(loss / 1e5, 4)
      expect(history.learningRate![i]).toBeCloseTo(loss / 1e6, 5)
      expect(history.stepSeconds![i]).toBe(0.25)
    }
    expect(recorded(20_003, true)).toEqual(history)
    const wrong = (value: unknown, steps = 20_003) => historySchema({ steps, layers: 1, experts: 2 })(value)
    expect(wrong(history)).toBe(null)
    expect(wrong(history, 20_004)).toEqual({ at: '.steps', must: 'must be 20004, got 20003' })
    expect(wrong({ ...history, load: [] })).toEqual({ at: '.load.length', must: 'must be 2501, got 0' })
    expect(wrong(null)).toEqual({ at: '', must: 'must be an object, got null' })
  })

  test('of very many evaluations keeps the first and every second one', () => {
    const history = emptyHistory()
    let most = 0
    for (let step = 0; step < 5000; step++) {
      recordEvaluation(history, { step, loss: 1, sample: '' })
      most = Math.max(most, history.evaluations.length)
    }
    expect(most).toBe(1024) // more are no history of a run
    const { length } = history.evaluations
    expect(length).toBeGreaterThan(512)
    expect(history.evaluations[0].step).toBe(0)
    expect(history.evaluations.at(-1)!.step).toBe(4999)
    const steps = history.evaluations.map(({ step }) => step)
    for (const [i, step] of steps.entries()) expect(step).toBeGreaterThan(steps[i - 1] ?? -1)
    expect(historySchema({ steps: 5000, layers: 1, experts: 2 })({ ...history, steps: 5000 })?.at).toBe('.loss.length')
  })

  test.runIf(long)('of very many experts stays small enough for the header of a checkpoint', () => {
    const history = emptyHistory()
    const load = Array.from({ length: 24 }, () => Array<number>(4096).fill(0.00012345))
    for (let step = 0; step < 200; step++)
      recordStep(history, { loss: 1.2345, dropped: 0.12345, learningRate: 0.0012345, stepSeconds: 1.2345, load })
    expect(history.stride).toBeGreaterThan(1)
    expect(JSON.stringify(history).length).toBeLessThan(90e6)
  })
})

test('the memory said to be needed is nearly that of weights, gradients and moments, and not more', () => {
  const tokenizer = CharacterTokenizer.of(String.fromCharCode(...Array.from({ length: 50 }, (_, i) => 65 + i)))
  const model = new LanguageModel({ tokenizer, context: 16, dim: 16, layers: 2, heads: 2, experts: 4 })
  const weights = [...model.parameters()].reduce((sum, { size }) => sum + size, 0)
  model.dispose()
  const estimate = trainingBytes(model.sizes, 50, 0)
  expect(estimate).toBeLessThan(16 * weights)
  expect(estimate).toBeGreaterThan(0.8 * 16 * weights)
})

test('n-gram orders of a large vocabulary are limited by the range of a number', async () => {
  const text = Int32Array.from({ length: 1000 }, (_, i) => (i * 7919) % 20_000)
  expect(await ngramLosses(text, text.subarray(0, 100), 100)).toHaveLength(4)
  expect(await ngramLosses(text, text.subarray(0, 100), 20_000)).toHaveLength(3)
})

describe('progress', () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['performance'] })
  })
  afterEach(() => {
    vi.useRealTimers()
  })

  function shown(isTTY: boolean, columns: number | null = 30, name = 'book.txt'): string {
    let text = ''
    const write = (more: unknown) => {
      text += more
      return true
    }
    const report = textProgress({ isTTY, columns: columns ?? undefined, write } as NodeJS.WriteStream)
    const counts = { unigram: 2.5, bigram: 2 }
    const sizes = { training: 9000, heldOut: 1000, vocabulary: 20, parameters: 12345, charactersPerStep: 32 }
    report({ event: 'start', text: name, ...sizes, counts })
    for (let step = 1; step <= 3; step++) {
      vi.advanceTimersByTime(8000)
      report({ event: 'step', step, steps: 3, loss: 3 - step / 10, dropped: 0.01, learningRate: 1e-3, load: [] })
    }
    report({ event: 'evaluation', step: 3, loss: 2.5, sample: 'x' })
    report({ event: 'end', step: 3, steps: 3, out: 'run', text: 'A\x1b[2Jb\n\tc' })
    return text
  }

  test('of a long preparation is one line on a terminal, and elsewhere a line every few seconds', () => {
    const shownOf = (isTTY: boolean): string => {
      let text = ''
      const write = (more: unknown) => {
        text += more
        return true
      }
      const report = textProgress({ isTTY, columns: 80, write } as NodeJS.WriteStream)
      for (let done = 1; done <= 9; done++) {
        vi.advanceTimersByTime(1000)
        report({ event: 'prepare', stage: 'reading', done, total: 9 })
      }
      report({ event: 'resume', step: 3 })
      return text
    }
    const parts = Array.from({ length: 9 }, (_, i) => `reading: ${Math.floor((100 * (i + 1)) / 9)} %`)
    expect(shownOf(true)).toBe([...['', ...parts].join('\r\x1b[2K'), '\r\x1b[2Kresumed at step 3\n'].join(''))
    expect(shownOf(false)).toBe('reading: 11 %\nreading: 66 %\nresumed at step 3\n')
  })

  test('is one line that is rewritten on a terminal, and no wider', () => {
    const [first, ...rest] = shown(true).split('\n')
    expect(first).toBe(
      '\r\x1b[2Kbook.txt: 9,000 training characters, 1,000 held out, vocabulary of 20; 12,345 parameters',
    )
    const parts = rest[1].split('\r\x1b[2K')
    expect(parts.slice(1, -1).length).toBeGreaterThan(0)
    for (const part of parts.slice(1, -1)) expect(part).toMatch(/^\d\/3 {2}loss 2\.\d{3} {2}0:0\d left$/)
    expect(parts.at(-1)).toBe('step 3  held-out loss 2.500')
  })

  test.each([
    [null, /^[█░]{20} \d\/3 {2}loss 2\.\d{3} {2}4 char\/s {2}1\.0 % dropped {2}0:0\d left$/],
    [0, /^[█░]{20} \d\/3 .* left$/],
    [62, /^[█░]{9} \d\/3 {2}loss 2\.\d{3} {2}4 char\/s {2}1\.0 % dropped {2}0:0\d left$/],
    [60, /^\d\/3 {2}loss 2\.\d{3} {2}4 char\/s {2}1\.0 % dropped {2}0:0\d left$/],
    [40, /^\d\/3 {2}loss 2\.\d{3} {2}4 char\/s {2}0:0\d left$/],
    [30, /^\d\/3 {2}loss 2\.\d{3} {2}0:0\d left$/],
    [20, /^\d\/3 {2}loss 2\.\d{3}$/],
    [3, /^\d\/$/],
  ])('on a terminal of %s columns shows what has room', (columns, line) => {
    const lines = shown(true, columns)
      .split('\r\x1b[2K')
      .filter((part) => /^[█░\d]/.test(part))
    expect(lines.length).toBeGreaterThan(0)
    for (const part of lines) expect(part).toMatch(line)
  })

  test('shows the control characters of texts and names, and does not send them', () => {
    for (const isTTY of [true, false]) {
      const text = shown(isTTY, 80, 'a\x1b]0;b\x07\n\u202ec').replaceAll('\r\x1b[2K', '')
      expect(text).toContain('a\\x1b]0;b\\x07\\n\\u202ec: 9,000 training characters')
      expect(text).toContain('\nA\\x1b[2Jb\n\tc\n')
      expect(text).not.toContain('\x1b')
    }
  })

  test('is plain lines elsewhere', () => {
    const text = shown(false)
    for (const sign of ['\x1b', '\r']) expect(text).not.toContain(sign)
    expect(text).toMatch(/^█{20} 3\/3 {2}loss 2\.800 {2}[\d,]+ char\/s {2}1\.0 % dropped {2}0:00 left$/m)
    expect(text).toMatch(/\nstep 3 of 3, report and checkpoint in run\n$/)
  })
})
