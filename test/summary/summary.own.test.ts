// Not on the emulator: the disk fails before the library is loaded, a device needs it loaded first.
import * as fs from 'node:fs'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inflateSync } from 'node:zlib'
import { afterAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { full, SummaryWriter, tensor } from '../../lib/index.js'
import { encodePng } from '../../lib/summary/png.js'
import { bytesField, integerField } from '../../lib/summary/protobuf.js'
import { recordOf } from '../../lib/summary/records.js'

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
    expect([127, 128].map((n) => [...integerField(1, n)])).toEqual([
      [8, 127],
      [8, 128, 1],
    ])
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
    expect(() => new SummaryWriter(join(folder, 'file', 'run'))).toThrow(/\[SummaryWriter\] .*file is not a folder/)
    expect(readdirSync(folder)).toEqual(['file'])
  })

  test('a full disk: nothing is left open, and no file', () => {
    disk.full = true
    expect(() => new SummaryWriter(folder)).toThrow(/\[SummaryWriter\] cannot write .*: ENOSPC/)
    expect([disk.open, readdirSync(folder)]).toEqual([0, []])
  })
})
