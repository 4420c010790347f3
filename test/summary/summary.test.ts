import * as fs from 'node:fs'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inflateSync } from 'node:zlib'
import { afterAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { tensorBoard } from '../../cli/trainer/tensorboard.js'
import { full, randn, SummaryWriter, tensor } from '../../lib/index.js'
import { encodePng } from '../../lib/summary/png.js'
import { bytesField, integerField } from '../../lib/summary/protobuf.js'
import { recordOf } from '../../lib/summary/records.js'
import { values } from '../support/baseline.js'
import { pythonFor, pythonPatience, referencePython, runScript } from '../support/python.js'

// Files for TensorBoard: the formats, and what TensorBoard itself reads.

const disk = vi.hoisted(() => ({ full: false, open: 0, made: (_folder: fs.PathLike) => {} }))

vi.mock('node:fs', async (importOriginal) => {
  const original = await importOriginal<typeof fs>()
  return {
    ...original,
    openSync: (...args: Parameters<typeof fs.openSync>) => {
      const file = original.openSync(...args)
      disk.open++
      return file
    },
    closeSync: (file: number) => {
      original.closeSync(file)
      disk.open--
    },
    writeSync: (...args: [file: number, bytes: Uint8Array, from: number]) => {
      if (disk.full) throw Object.assign(new Error('ENOSPC: as if'), { code: 'ENOSPC' })
      return original.writeSync(...args)
    },
    mkdirSync: (...args: Parameters<typeof fs.mkdirSync>) => {
      original.mkdirSync(...args)
      disk.made(args[0])
    },
  }
})

const root = mkdtempSync(join(tmpdir(), 'st-moe-summary-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))
let folder: string
beforeEach(() => {
  Object.assign(disk, { full: false, open: 0, made: () => {} })
  folder = mkdtempSync(join(root, 'run-'))
})

/** The records of a file. */
function recordsIn(path: string): Buffer[] {
  const file = readFileSync(path)
  const records: Buffer[] = []
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at))
    records.push(file.subarray(at + 12, at + 12 + length))
    at += length + 16
  }
  return records
}

describe('formats', () => {
  test('a record has the length, the bytes and masked checksums', () => {
    // CRC-32C of '123456789' is e3069283 (RFC 3720, appendix B.4, has the polynomial).
    const record = Buffer.from(recordOf(new TextEncoder().encode('123456789')))
    expect(record.length).toBe(25)
    expect(record.readBigUInt64LE(0)).toBe(9n)
    expect(record.subarray(12, 21).toString()).toBe('123456789')
    const crc = 0xe3069283
    expect(record.readUInt32LE(21)).toBe((((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0)
  })

  test('integers above 2^32, and messages', () => {
    expect([...integerField(1, 300)]).toEqual([8, 0xac, 2])
    expect([...integerField(2, 2 ** 40 + 1)]).toEqual([16, 129, 128, 128, 128, 128, 32])
    expect([...bytesField(3, [integerField(1, 1), bytesField(2, 'ä')])]).toEqual([26, 6, 8, 1, 18, 2, 0xc3, 0xa4])
  })

  test('a PNG holds its pixels', () => {
    const pixels = Uint8Array.from({ length: 2 * 3 * 3 }, (_, i) => 10 * i)
    const png = Buffer.from(encodePng(pixels, 2, 3, 3))
    expect([png.readUInt32BE(16), png.readUInt32BE(20), png[24], png[25]]).toEqual([3, 2, 8, 2])
    const at = png.indexOf('IDAT')
    const rows = inflateSync(png.subarray(at + 4, at + 4 + png.readUInt32BE(at - 4)))
    expect([...rows]).toEqual([0, ...pixels.subarray(0, 9), 0, ...pixels.subarray(9)])
  })
})

test('every call is in the file at once; each writer has a file of its own', () => {
  using writer = new SummaryWriter(join(folder, 'new', 'folder'))
  expect(recordsIn(writer.path).length).toBe(1)
  writer.addScalar('loss', 2, 0)
  writer.addScalar('loss', Number.NaN, 1)
  expect(recordsIn(writer.path).length).toBe(3)
  using other = new SummaryWriter(join(folder, 'new', 'folder'), { purgeStep: 1 })
  expect(other.path).not.toBe(writer.path)
  expect(recordsIn(other.path).length).toBe(2)
  writer.flush()
  writer.close()
  writer.close()
  expect(() => writer.addScalar('loss', 1, 2)).toThrow('the writer has been closed')
})

test('another process may create the folder at the same time', () => {
  const above = join(folder, 'above')
  disk.made = (path) => {
    if (path === above) fs.mkdirSync(join(above, 'below'))
  }
  using writer = new SummaryWriter(join(above, 'below'))
  expect(fs.existsSync(writer.path)).toBe(true)
})

describe('errors', () => {
  test.each<[string, (writer: SummaryWriter) => unknown]>([
    ['folder must be a path, got 3', () => new SummaryWriter(3 as never)],
    ['purgeStep must be', () => new SummaryWriter(folder, { purgeStep: -1 })],
    ['tag must be a string', (writer) => writer.addScalar(1 as never, 1, 0)],
    ['value must be a number', (writer) => writer.addScalar('loss', '1' as never, 0)],
    ['step must be', (writer) => writer.addScalar('loss', 1, 0.5)],
    ['values must not be empty', (writer) => writer.addHistogram('h', [], 0)],
    ['values must be a Tensor', (writer) => writer.addHistogram('h', new DataView(new ArrayBuffer(8)) as never, 0)],
    ['values must be finite, got NaN', (writer) => writer.addHistogram('h', [1, Number.NaN], 0)],
    ['values[1] must be a number, got "2"', (writer) => writer.addHistogram('h', [1, '2' as never], 0)],
    ['image must be [H, W] or [H, W, 3], got [2]', (writer) => writer.addImage('i', tensor([1, 2]), 0)],
    ['image must be [H, W] or [H, W, 3], got [2, 2, 4]', (writer) => writer.addImage('i', full([2, 2, 4], 1), 0)],
    ['text must be a string', (writer) => writer.addText('t', 1 as never, 0)],
  ])('%s', (text, fn) => {
    using writer = new SummaryWriter(folder)
    const before = readFileSync(writer.path)
    expect(() => fn(writer)).toThrow(text)
    expect(readFileSync(writer.path)).toEqual(before)
  })

  test('a folder that cannot be made', () => {
    writeFileSync(join(folder, 'file'), '')
    expect(() => new SummaryWriter(join(folder, 'file', 'run'))).toThrow(/\[SummaryWriter\] cannot write .*: ENOTDIR/)
    expect(readdirSync(folder)).toEqual(['file'])
  })

  test('a full disk: nothing is left open, and no file', () => {
    disk.full = true
    expect(() => new SummaryWriter(folder)).toThrow(/\[SummaryWriter\] cannot write .*: ENOSPC/)
    expect([disk.open, readdirSync(folder)]).toEqual([0, []])
  })
})

describe('TensorBoard', () => {
  vi.setConfig({ testTimeout: pythonPatience })

  const read = (python: string) => {
    const file = join(folder, 'read.json')
    runScript(python, 'read_events.py', folder, file)
    return JSON.parse(readFileSync(file, 'utf8').replaceAll('Infinity', '1e999')) // as Python writes it
  }

  test('reads scalars, and drops those of steps that a resumed run repeats', (context) => {
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
    expect(read(python)).toEqual({ scalars: { 'loss/train': loss }, histograms: {}, images: {}, texts: {} })
  })

  test('reads histograms, images and texts', (context) => {
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
    const { histograms, images, texts } = read(python)
    expect(texts).toEqual({ sample: [[3, 'Call me *Ishmäl*']] })
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

  test('reads a run of st-moe train, resumed after it was killed', (context) => {
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
    const { scalars, histograms, images, texts } = read(python)
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
    expect(texts.sample.at(-1)).toEqual([4, 'Call me'])
    expect(images['expert load'][0].slice(0, 3)).toEqual([4, 3, 1])
    expect(images['expert load'][0][3]).toBe(
      Buffer.from(encodePng(Uint8Array.of(191, 96, 96), 1, 3, 1)).toString('hex'),
    )
    expect(histograms['expert load/layer 0'][0].slice(0, 4)).toEqual([4, 0.25, 0.5, 3])
    const again = tensorBoard(folder)
    steps(again, 1, 1, 7)
    expect(read(python).scalars['loss/training']).toEqual([[1, 7]])
  })
})
