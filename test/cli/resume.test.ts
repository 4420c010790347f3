import { cpSync, readdirSync, readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { at, cli, expectRefused, jsonLines, succeeded, tiny } from '../support/cli.js'

/** What may change when a run of `st-moe train` is resumed. */

test('--steps below the completed steps is an error that changes nothing; equal to them, there is nothing to do', async () => {
  cpSync(at('run'), at('done'), { recursive: true })
  const files = () => readdirSync(at('done')).map((name) => [name, readFileSync(at(`done/${name}`), 'utf8')])
  const before = files()
  const less = await cli(['train', '--resume', '--out', 'done', '--steps', '20'])
  expectRefused(less, 2, 'st-moe train: this run has completed 30 steps: --steps must be at least 30, got 20\n')
  expect(files()).toEqual(before)
  expect(await succeeded(['train', '--resume', '--out', 'done', '--steps', '30'])).toContain('step 30 of 30, report')
})

test('--lr changes the learning rate of a resumed run', async () => {
  cpSync(at('run'), at('slow'), { recursive: true })
  const out = await succeeded(['train', '--resume', '--out', 'slow', '--steps', '40', '--lr', '0', '--json'])
  const rates = jsonLines(out).flatMap(({ learningRate }) => learningRate ?? [])
  expect(rates).toEqual(Array(10).fill(0))
  expect(JSON.parse(readFileSync(at('slow/run.json'), 'utf8')).options.lr).toBe(0)
  expect(readFileSync(at('slow/report.html'), 'utf8')).not.toContain('null')
})

test('a resumed run has no time limit unless it is given one', async () => {
  const first = await succeeded(['train', 'book.txt', '--out', 'timed', '--steps', '3', '--minutes', '1e-9', ...tiny])
  expect(first).toContain('step 1 of 3,')
  expect(await succeeded(['train', '--resume', '--out', 'timed'])).toContain('step 3 of 3,')
})
