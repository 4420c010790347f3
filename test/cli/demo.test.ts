import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { History } from '../../cli/trainer/history.js'
import { loadSafetensorsSync } from '../../lib/index.js'
import { long } from '../support/numbers.js'
import { runProgram } from '../support/program.js'
import { sentences } from '../support/sentences.js'

const small = '--layers 2 --dim 32 --heads 2 --experts 4 --context 32 --batch 4 --threads 1 --lr 4e-3'.split(' ')
let folder: string
let text: string

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'st-moe-demo-'))
  text = join(folder, 'sentences.txt')
  writeFileSync(text, sentences(400))
})

afterAll(() => rmSync(folder, { recursive: true, force: true }))

const demo = (args: readonly string[], interruptAt?: string) =>
  runProgram(['--import', 'tsx', 'examples/train-language-model.ts', ...args], { interruptAt })

function checkpoint(out: string) {
  const { tensors, metadata } = loadSafetensorsSync(join(out, 'checkpoint.safetensors'))
  const about = JSON.parse(metadata['st-moe.checkpoint'])
  const values = Object.entries(tensors).map(([name, value]) => [name, Buffer.from(value.dataSync().buffer)] as const)
  for (const value of Object.values(tensors)) value.dispose()
  const history: History = about.extra.history
  return { step: about.step as number, generator: about.generator, history, values: new Map(values) }
}

describe('the demo', () => {
  const steps = long ? 800 : 60 // 800: until it writes words
  const every = long ? 100 : 20
  const options = (out: string, steps: number): string[] => [
    '--text',
    text,
    '--out',
    out,
    '--steps',
    `${steps}`,
    ...small,
  ]

  let whole: ReturnType<typeof checkpoint>
  let first: Awaited<ReturnType<typeof demo>>
  const out = () => join(folder, 'whole')
  beforeAll(async () => {
    first = await demo([...options(out(), steps), '--evaluate-every', `${every}`])
    whole = checkpoint(out())
  })

  test('trains on a text, and writes a checkpoint and a self-contained report', () => {
    expect(first.err).toBe('')
    expect(first.code).toBe(0)
    expect(first.out).toContain(`${steps} of ${steps}`)
    expect(readdirSync(out()).sort()).toEqual(
      ['checkpoint.safetensors', 'dropped.svg', 'expert-load.svg', 'loss.svg', 'report.html', 'run.json'].sort(),
    )
    const { evaluations, loss, load } = whole.history
    expect(evaluations).toHaveLength(steps / every + 1)
    expect(evaluations[0].loss).toBeGreaterThan(2.5)
    // Each sentence takes one of 4 · 3 · 3 forms, so at best ln(36) / 35 characters ≈ 0.1.
    expect(evaluations.at(-1)!.loss).toBeLessThan(long ? 0.25 : 2)
    expect(evaluations.at(-1)!.loss).toBeGreaterThan(0.05)
    const words = /\nThe (old|young|tired|grey) \w+ (sees|hears|follows) the sea\.\n/
    if (long) expect(evaluations.at(-1)!.sample).toMatch(words)
    expect(loss).toHaveLength(steps)
    for (const shares of load.flat()) expect(shares.reduce((a, b) => a + b)).toBeCloseTo(1, 3)

    const html = readFileSync(join(out(), 'report.html'), 'utf8')
    expect(html.match(/<svg /g)).toHaveLength(3)
    expect(html.replaceAll('http://www.w3.org/2000/svg', '')).not.toMatch(/https?:|src=|url\(|@import|NaN|undefined/)
  })

  test.runIf(long)('Ctrl-C saves, and --resume continues bit for bit', async () => {
    const out = join(folder, 'parts')
    const first = await demo([...options(out, steps), '--evaluate-every', `${every}`], `step ${every} `)
    expect(first.code).toBe(130)
    const part = checkpoint(out)
    expect(part.step).toBeGreaterThanOrEqual(every)
    expect(part.step).toBeLessThan(steps)
    expect(part.history.loss).toHaveLength(part.step)
    expect(existsSync(join(out, 'report.html'))).toBe(true)

    const second = await demo(['--resume', '--out', out])
    expect(second.err).toBe('')
    expect(second.code).toBe(0)
    const { step, generator, history, values } = checkpoint(out)
    expect({ step, generator }).toEqual({ step: whole.step, generator: whole.generator })
    expect(history.loss).toEqual(whole.history.loss)
    expect(history.evaluations).toEqual(whole.history.evaluations)
    expect([...values.keys()].sort()).toEqual([...whole.values.keys()].sort())
    for (const [name, bytes] of values) expect(bytes.equals(whole.values.get(name)!), name).toBe(true)
  })

  test('evaluations change nothing', async () => {
    const out = join(folder, 'quiet')
    const { code } = await demo([...options(out, steps), '--evaluate-every', `${steps}`])
    expect(code).toBe(0)
    expect(checkpoint(out).history.loss).toEqual(whole.history.loss)
  })
})

test.skipIf(!long)('--minutes ends a run that can be resumed', async () => {
  const out = join(folder, 'minutes')
  const { code } = await demo(['--text', text, '--out', out, '--steps', '10000000', '--minutes', '0.02', ...small])
  expect(code).toBe(0)
  const { step } = checkpoint(out)
  expect(step).toBeGreaterThan(0)
  expect(step).toBeLessThan(10000000)
  expect((await demo(['--resume', '--out', out, '--steps', String(step + 3)])).code).toBe(0)
  expect(checkpoint(out).step).toBe(step + 3)
})

test('what is wrong is said with the name of the program', async () => {
  const { code, err } = await demo(['--step', '5'])
  expect(code).toBe(2)
  expect(err).toBe(
    'npm run demo --: unknown flag --step; did you mean --steps?\nrun npm run demo -- --help for usage\n',
  )
})
