import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { tensorBoard } from '../../cli/trainer/tensorboard.js'
import { full, randn, SummaryWriter, tensor } from '../../lib/index.js'
import { encodePng } from '../../lib/summary/png.js'
import { values } from '../support/baseline.js'
import { pythonFor, pythonPatience, referencePython } from '../support/python.js'
import { scriptRunner } from '../support/python-scripts.js'

// What TensorBoard itself reads of the files of SummaryWriter.

const runScript = scriptRunner()
let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'st-moe-tensorboard-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

vi.setConfig({ testTimeout: pythonPatience })

const read = async (python: string) => {
  const file = join(folder, 'read.json')
  await runScript(python, 'read_events.py', folder, file)
  return JSON.parse(readFileSync(file, 'utf8').replaceAll('Infinity', '1e999')) // as Python writes it
}

test('reads scalars, and drops those of steps that a resumed run repeats', async (context) => {
  const python = pythonFor(context, referencePython())
  {
    using writer = new SummaryWriter(folder)
    for (let step = 0; step < 4; step++) writer.addScalar('loss/train', 1 / (step + 1), step)
  }
  {
    using writer = new SummaryWriter(folder, { purgeStep: 2 })
    writer.addScalar('loss/train', 9, 2)
  }
  const loss = [
    [0, 1],
    [1, 0.5],
    [2, 9],
  ]
  expect(await read(python)).toEqual({ scalars: { 'loss/train': loss }, histograms: {}, images: {}, texts: {} })
})

test('reads histograms, images and texts', async (context) => {
  const python = pythonFor(context, referencePython())
  const gates = randn([1000]).to('bf16')
  const numbers = values(gates.to('f32'))
  {
    using writer = new SummaryWriter(folder)
    writer.addHistogram('gates', gates, 3, 8)
    writer.addHistogram('same', Int32Array.of(5, 5, 5), 3, 4)
    writer.addHistogram('widest', [-1.7e308, 0.1, 1.7e308], 3, 2)
    writer.addImage('load', tensor([[0, 0.5, 1]]), 3)
    writer.addImage('color', full([1, 2, 3], 0.2), 2 ** 40)
    writer.addText('sample', 'Call me *Ishmäl*', 3)
  }
  const { histograms, images, texts } = await read(python)
  expect(texts).toEqual({ 'sample/text_summary': [[3, 'Call me *Ishmäl*']] })
  expect(images.load[0].slice(0, 3)).toEqual([3, 3, 1])
  expect(images.load[0][3]).toBe(Buffer.from(encodePng(Uint8Array.of(0, 128, 255), 1, 3, 1)).toString('hex'))
  expect(images.color[0].slice(0, 3)).toEqual([2 ** 40, 2, 1])
  const [step, least, most, count, sum, squares, limits, buckets] = histograms.gates[0]
  expect([step, least, most, count]).toEqual([3, Math.min(...numbers), Math.max(...numbers), 1000])
  expect(sum).toBeCloseTo(numbers.reduce((a, b) => a + b))
  expect(squares).toBeCloseTo(numbers.reduce((a, b) => a + b * b, 0))
  const below = (limit: number) => numbers.filter((x) => x < limit).length
  expect(limits.length).toBe(8)
  expect(buckets).toEqual(
    limits.map((limit: number, i: number) => (i === 7 ? 1000 : below(limit)) - (i ? below(limits[i - 1]) : 0)),
  )
  expect(histograms.same[0][7]).toEqual([3, 0, 0, 0])
  expect(histograms.widest[0].slice(5)).toEqual([Number.POSITIVE_INFINITY, [0, 1.7e308], [1, 2]])
})

test('reads a run of st-moe train, resumed after it was killed', async (context) => {
  const python = pythonFor(context, referencePython())
  const load = [[0.5, 0.25, 0.25]]
  const steps = (report: ReturnType<typeof tensorBoard>, first: number, last: number, loss: number) => {
    for (let step = first; step <= last; step++)
      report({ event: 'step', step, steps: 4, loss, dropped: 0.125, learningRate: 0.5 ** step, load })
  }
  const killed = tensorBoard(folder)
  killed({ event: 'evaluation', step: 0, loss: 5, sample: 'qq' })
  steps(killed, 1, 4, 2)
  const resumed = tensorBoard(folder)
  resumed({ event: 'resume', step: 2 })
  steps(resumed, 3, 4, 1)
  resumed({ event: 'evaluation', step: 4, loss: 3, sample: 'Call me' })
  resumed({ event: 'end', step: 4, steps: 4, out: folder, text: '' })
  const { scalars, histograms, images, texts } = await read(python)
  const each = (of: (step: number) => number) => [1, 2, 3, 4].map((step) => [step, of(step)])
  expect(scalars).toEqual({
    'loss/held-out': [
      [0, 5],
      [4, 3],
    ],
    'loss/training': each((step) => (step > 2 ? 1 : 2)),
    dropped: each(() => 0.125),
    'learning rate': each((step) => 0.5 ** step),
  })
  expect(texts['sample/text_summary'].at(-1)).toEqual([4, 'Call me'])
  expect(images['expert load'][0].slice(0, 3)).toEqual([4, 3, 1])
  expect(images['expert load'][0][3]).toBe(Buffer.from(encodePng(Uint8Array.of(191, 96, 96), 1, 3, 1)).toString('hex'))
  expect(histograms['expert load/layer 0'][0].slice(0, 4)).toEqual([4, 0.25, 0.5, 3])
  const again = tensorBoard(folder)
  steps(again, 1, 1, 7)
  expect((await read(python)).scalars['loss/training']).toEqual([[1, 7]])
})
