import { execFileSync } from 'node:child_process'
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createServer, Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import {
  type DType,
  decodeSafetensors,
  encodeSafetensors,
  type LoadedTensors,
  loadSafetensors,
  loadSafetensorsSync,
  MoeError,
  memory,
  randn,
  type StateDict,
  saveSafetensors,
  saveSafetensorsSync,
  scope,
  tensor,
  zeros,
} from '../../lib/index.js'
import { damageBytes, damageHeader } from '../support/damage.js'
import { Draw, long, runSeed } from '../support/numbers.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-safetensors-'))
afterAll(() => rmSync(folder, { recursive: true }))
const file = join(folder, 'a.safetensors')

const dtypes: readonly DType[] = ['f32', 'f64', 'bf16', 'f16', 'i32']
const bytesOf = (state: StateDict) =>
  Object.fromEntries(
    Object.entries(state).map(([name, t]) => [
      name,
      [t.dtype, [...t.shape], Buffer.from(t.dataSync().buffer).toString('hex')],
    ]),
  )

function everything(): StateDict {
  const special = [0, -0, 1, -1.5, Number.NaN, Infinity, -Infinity, 1e-40, 3.4e38, 1 / 3]
  const state: StateDict = Object.create(null)
  for (const dtype of dtypes) {
    state[`${dtype}.matrix`] = randn([3, 5]).mul(100).to(dtype)
    state[`${dtype}.special`] = tensor(Float64Array.from(special), [2, 5]).to(dtype)
    state[`${dtype}.scalar`] = tensor([2], []).to(dtype)
    state[`${dtype}.empty`] = zeros([0, 3], { dtype })
  }
  for (const name of ['', 'ä 漢 "quoted" \\ \n', '__proto__', 'constructor', 'a'.repeat(300)]) state[name] = randn([2])
  return state
}

describe('round trips', () => {
  test('every dtype, shape and odd name, bit for bit, by all six functions', async () => {
    const state = everything()
    const metadata = { step: '7', ü: 'ö\n"', __proto__x: '' }
    saveSafetensorsSync(file, state, { metadata })
    const written = readFileSync(file)
    await saveSafetensors(file, state, { metadata })
    expect(readFileSync(file).equals(written)).toBe(true)
    const bytes = encodeSafetensors(state, { metadata })
    expect(written.equals(bytes)).toBe(true)
    expect(bytes.buffer.byteLength).toBe(bytes.byteLength) // no pool of Node's, which could not be transferred
    const shared = new Uint8Array(new SharedArrayBuffer(bytes.length + 4), 1, bytes.length)
    shared.set(bytes)
    const inMemory = [decodeSafetensors(bytes), decodeSafetensors(shared)]
    bytes.fill(0)
    for (const loaded of [loadSafetensorsSync(file), await loadSafetensors(file), ...inMemory]) {
      expect(bytesOf(loaded.tensors)).toEqual(bytesOf(state))
      expect(loaded.metadata).toEqual(metadata)
    }
  })

  test('a file without tensors, and one without metadata', () => {
    saveSafetensorsSync(file, {})
    expect(loadSafetensorsSync(file)).toEqual({ tensors: {}, metadata: {} })
  })

  test('the header fills whole words, and every tensor is aligned to its type', () => {
    saveSafetensorsSync(file, everything())
    const bytes = readFileSync(file)
    const length = Number(bytes.readBigUInt64LE())
    expect(length % 8).toBe(0)
    const header = JSON.parse(bytes.toString('utf8', 8, 8 + length))
    const sizes: Record<string, number> = { F32: 4, F64: 8, BF16: 2, F16: 2, I32: 4 }
    for (const { dtype, data_offsets: offsets } of Object.values<{ dtype: string; data_offsets: number[] }>(header))
      expect(offsets[0] % sizes[dtype]).toBe(0)
  })

  test('I64, U8 and BOOL come as i32', () => {
    const data = Buffer.alloc(16 + 3 + 2)
    data.writeBigInt64LE(-5n, 0)
    data.writeBigInt64LE(2n ** 31n - 1n, 8)
    data.set([0, 7, 255, 1, 0], 16)
    writeRaw(
      {
        a: { dtype: 'I64', shape: [2], data_offsets: [0, 16] },
        b: { dtype: 'U8', shape: [3], data_offsets: [16, 19] },
        c: { dtype: 'BOOL', shape: [2], data_offsets: [19, 21] },
      },
      data,
    )
    const { a, b, c } = loadSafetensorsSync(file).tensors
    expect([a, b, c].map((t) => [t.dtype, ...t.dataSync()])).toEqual([
      ['i32', -5, 2 ** 31 - 1],
      ['i32', 0, 7, 255],
      ['i32', 1, 0],
    ])
  })
})

/** A file with this header, as JSON or as text, and these data. */
function writeRaw(header: unknown, data: Uint8Array = new Uint8Array(0), length?: bigint): void {
  const text = Buffer.from(
    typeof header === 'string' || header instanceof Buffer ? (header as string) : JSON.stringify(header),
  )
  const head = Buffer.alloc(8)
  head.writeBigUInt64LE(length ?? BigInt(text.length))
  writeFileSync(file, Buffer.concat([head, text, data]))
}

const entry = (change: object) => ({ a: { dtype: 'F32', shape: [2], data_offsets: [0, 8], ...change } })

const nothing = { dtype: 'U8', shape: [0], data_offsets: [0, 0] }
const list = (length: number, text: (i: number) => string) => Array.from({ length }, (_, i) => text(i)).join()

test('white space, escapes and any order of fields are read; integer names and __proto__ are names', () => {
  const odd = ['7', '__proto__', 'constructor', 'a\n\u00e9"\\']
  const entries = odd.map(
    (name, i) => ` ${JSON.stringify(name)} : {"data_offsets":[${i}\t,${i + 1}], "shape" :[ ] ,"dtype":"U8"}`,
  )
  writeRaw(`{\r\n"__metadata__":{"__proto__":"\\ud83d\\ude00"},${entries}}\n `, Buffer.from([1, 2, 3, 4]))
  const { tensors, metadata } = loadSafetensorsSync(file)
  expect(Object.entries(metadata)).toEqual([['__proto__', '😀']])
  expect(odd.map((name) => Object.getOwnPropertyDescriptor(tensors, name)?.value.item())).toEqual([1, 2, 3, 4])
})

test('a tensor without elements may come after one that begins at the same byte', () => {
  const empty = { dtype: 'F32', shape: [0], data_offsets: [0, 0] }
  writeRaw({ ...entry({}), empty }, new Uint8Array(new Float32Array([1.5, 2.5]).buffer))
  const { a, empty: none } = loadSafetensorsSync(file).tensors
  expect([[...a.dataSync()], none.shape]).toEqual([[1.5, 2.5], [0]])
})

describe('what could not be read again is not written', () => {
  const names = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, i) => [`${i}`, small]))
  const small = zeros([0])
  const cases: [name: string, state: StateDict, metadata: Record<string, string>, text: RegExp][] = [
    ['a long header', {}, { a: 'x'.repeat(100_000_000) }, /exceed a header of 100000000 bytes/],
    ['many tensors', names(200_001), {}, /at most 200000 tensors, got 200001/],
    ['much metadata', {}, Object.fromEntries(Array.from({ length: 65_537 }, (_, i) => [`${i}`, ''])), /at most 65536/],
    ['half a pair in a name', { 'a\ud800': small }, {}, /names must be valid Unicode/],
    ['half a pair in a key', {}, { '\udc00': '' }, /metadata must be valid Unicode/],
    ['half a pair in a value', {}, { a: 'x\ud800' }, /metadata must be valid Unicode/],
  ]
  const huge: typeof cases = [
    ['a header that escapes make long', {}, { a: '\u0001'.repeat(20_000_000) }, /exceed a header/],
    ['a header that UTF-8 makes long', {}, { a: '漢'.repeat(34_000_000) }, /exceed a header/],
  ]
  test.each([...cases, ...(long ? huge : [])])('%s', async (_, state, metadata, text) => {
    saveSafetensorsSync(file, { kept: small })
    const before = readFileSync(file)
    const refused = { name: 'MoeError', code: 'OPTION', message: expect.stringMatching(text) }
    expect(() => saveSafetensorsSync(file, state, { metadata })).toThrow(expect.objectContaining(refused))
    await expect(saveSafetensors(file, state, { metadata })).rejects.toMatchObject(refused)
    expect(readFileSync(file).equals(before)).toBe(true)
  })
})

describe.skipIf(process.platform === 'win32')('what is no regular file is refused at once', () => {
  const place = join(folder, 'place')
  const cases: [name: string, make: () => unknown, text: RegExp][] = [
    [
      'a pipe that nobody writes to',
      () => execFileSync('mkfifo', [place]),
      /cannot read .*: it is a pipe, not a regular/,
    ],
    ['a directory', () => mkdirSync(place), /cannot read .*: it is a directory, not a regular file/],
    ['a device', () => symlinkSync('/dev/zero', place), /cannot read .*: it is a device, not a regular file/],
    ['a socket', () => listen(place), /cannot read .*: ENXIO/],
    ['nothing', () => {}, /cannot read .*: ENOENT/],
  ]
  test.each(cases)('%s', async (_, make, text) => {
    const made = await make()
    const refused = { name: 'MoeError', code: 'FILE_SYSTEM', message: expect.stringMatching(text) }
    expect(() => loadSafetensorsSync(place)).toThrow(expect.objectContaining(refused))
    await expect(loadSafetensors(place)).rejects.toMatchObject(refused)
    if (made instanceof Server) made.close()
    rmSync(place, { recursive: true, force: true })
  })
})

const listen = (path: string) =>
  new Promise<Server>((resolve) => {
    const server = createServer().listen(path, () => resolve(server))
  })

describe('hostile files are FILE_FORMAT errors', () => {
  const cases: [name: string, write: () => void][] = [
    ['nothing', () => writeFileSync(file, '')],
    ['7 bytes', () => writeFileSync(file, Buffer.alloc(7))],
    ['a header longer than the file', () => writeRaw({}, undefined, 1000n)],
    ['a header of 2^63 bytes', () => writeRaw({}, undefined, 2n ** 63n)],
    ['a header above the limit', () => writeRaw({}, undefined, 100_000_001n)],
    ['an empty header', () => writeRaw('')],
    ['no JSON', () => writeRaw('{"a":')],
    ['an array', () => writeRaw('[]')],
    ['null', () => writeRaw('null')],
    ['no UTF-8', () => writeFileSync(file, Buffer.from([1, 0, 0, 0, 0, 0, 0, 0, 0xff]))],
    ['deep nesting', () => writeRaw(`{"a":${'['.repeat(2_000_000)}`)],
    ['deep nesting that ends', () => writeRaw(`{"a":${'['.repeat(1e6)}${']'.repeat(1e6)}}`)],
    ['an entry that is a number', () => writeRaw({ a: 1 })],
    ['an entry that is null', () => writeRaw({ a: null })],
    ['an unknown dtype', () => writeRaw(entry({ dtype: 'F8_E4M3' }), Buffer.alloc(8))],
    ['a dtype of the prototype', () => writeRaw(entry({ dtype: 'constructor' }), Buffer.alloc(8))],
    ['a negative dimension', () => writeRaw(entry({ shape: [-2] }), Buffer.alloc(8))],
    ['a fractional dimension', () => writeRaw(entry({ shape: [1.5] }), Buffer.alloc(8))],
    ['a dimension in quotes', () => writeRaw(entry({ shape: ['2'] }), Buffer.alloc(8))],
    ['an overflowing shape', () => writeRaw(entry({ shape: [2 ** 40, 2 ** 40] }), Buffer.alloc(8))],
    ['nine dimensions', () => writeRaw(entry({ shape: [1, 1, 1, 1, 1, 1, 1, 1, 2] }), Buffer.alloc(8))],
    ['a huge empty shape', () => writeRaw(entry({ shape: [0, 2 ** 53 - 1, 2 ** 53 - 1], data_offsets: [0, 0] }))],
    ['an empty shape that begins huge', () => writeRaw(entry({ shape: [2 ** 46, 2 ** 46, 0], data_offsets: [0, 0] }))],
    ['no shape', () => writeRaw(entry({ shape: undefined }), Buffer.alloc(8))],
    ['offsets that are not two', () => writeRaw(entry({ data_offsets: [0, 8, 8] }), Buffer.alloc(8))],
    ['offsets that go back', () => writeRaw(entry({ data_offsets: [8, 0] }), Buffer.alloc(8))],
    ['offsets beyond the file', () => writeRaw(entry({ shape: [4], data_offsets: [0, 16] }), Buffer.alloc(8))],
    ['offsets that do not fit the shape', () => writeRaw(entry({ data_offsets: [0, 4] }), Buffer.alloc(4))],
    ['a hole', () => writeRaw(entry({ data_offsets: [4, 12] }), Buffer.alloc(12))],
    ['bytes left over', () => writeRaw(entry({}), Buffer.alloc(9))],
    ['an overlap', () => writeRaw({ ...entry({}), b: entry({}).a }, Buffer.alloc(8))],
    ['metadata with a number', () => writeRaw({ __metadata__: { a: 1 } })],
    ['metadata that is a list', () => writeRaw({ __metadata__: ['a'] })],
    ['a byte order mark', () => writeRaw('\ufeff{}')],
    ['only white space', () => writeRaw(' \n\t ')],
    ['a form feed before it', () => writeRaw('\f{}')],
    ['a zero behind it', () => writeRaw('{}\0')],
    ['a zero in a name', () => writeRaw('{"a\0":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}')],
    ['no UTF-8 in a name', () => writeRaw(Buffer.from('{"__metadata__":{"a\xff":""}}', 'latin1'))],
    ['half a surrogate pair', () => writeRaw('{"__metadata__":{"a":"\\ud800"}}')],
    ['an unknown escape', () => writeRaw('{"__metadata__":{"a":"\\x41"}}')],
    ['a backslash at the end', () => writeRaw('{"__metadata__":{"a":"\\')],
    ['a comma too many', () => writeRaw('{"__metadata__":{},}')],
    ['a second value', () => writeRaw('{}{}')],
    [
      'a tensor twice',
      () => writeRaw(`{${[1, 2].map(() => JSON.stringify(entry({})).slice(1, -1))}}`, Buffer.alloc(8)),
    ],
    ['metadata twice', () => writeRaw('{"__metadata__":{},"__metadata__":{}}')],
    ['a key of metadata twice', () => writeRaw('{"__metadata__":{"a":"","\\u0061":""}}')],
    ['metadata that is null', () => writeRaw('{"__metadata__":null}')],
    ['an unknown field', () => writeRaw(entry({ strides: [1] }), Buffer.alloc(8))],
    ['a field twice', () => writeRaw('{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}')],
    ...['-0', '1e0', '1.0', '01', '+1', '0x1', '1e999', '9007199254740993', '9'.repeat(400), 'null', ',', '1 1'].map(
      (number): [string, () => void] => [
        `the dimension ${number.slice(0, 20)}`,
        () => writeRaw(`{"a":{"dtype":"U8","shape":[${number}],"data_offsets":[0,1]}}`, Buffer.alloc(1)),
      ],
    ),
    ['200,001 tensors', () => writeRaw(`{${list(200_001, (i) => `"${i}":${JSON.stringify(nothing)}`)}}`)],
    ['65,537 entries of metadata', () => writeRaw(`{"__metadata__":{${list(65_537, (i) => `"${i}":""`)}}}`)],
    [
      'an I64 that does not fit',
      () => {
        const data = Buffer.alloc(8)
        data.writeBigInt64LE(2n ** 31n)
        writeRaw(entry({ dtype: 'I64', shape: [1] }), data)
      },
    ],
  ]

  test.each(cases)('%s', async (_, write) => {
    write()
    const before = memory().tensors
    const expected = expect.objectContaining({ name: 'MoeError', code: 'FILE_FORMAT' })
    expect(() => loadSafetensorsSync(file)).toThrow(expected)
    await expect(loadSafetensors(file)).rejects.toEqual(expected)
    expect(memory().tensors).toBeLessThanOrEqual(before) // the collector may free what earlier tests left
  })

  test('every truncation', () => {
    saveSafetensorsSync(file, { a: randn([3]), b: zeros([2], { dtype: 'i32' }) }, { metadata: { k: 'v' } })
    const whole = readFileSync(file)
    for (let length = 0; length < whole.length; length++) {
      writeFileSync(file, whole.subarray(0, length))
      expect(() => loadSafetensorsSync(file), `${length} bytes`).toThrow(
        expect.objectContaining({ code: 'FILE_FORMAT' }),
      )
    }
  })

  test('a file that claims terabytes is refused by its header before any of it is read', async () => {
    writeRaw(entry({}), Buffer.alloc(8))
    truncateSync(file, 2 ** 42)
    const before = process.memoryUsage().rss
    expect(() => loadSafetensorsSync(file)).toThrow(expect.objectContaining({ code: 'FILE_FORMAT' }))
    await expect(loadSafetensors(file)).rejects.toMatchObject({ code: 'FILE_FORMAT' })
    expect(process.memoryUsage().rss - before).toBeLessThan(2 ** 28)
  })
})

test('only the bytes of a file are decoded', () => {
  const wrong = (bytes: unknown) => () => decodeSafetensors(bytes as Uint8Array)
  expect(wrong('abc')).toThrow('[decodeSafetensors] bytes must be a Uint8Array, got "abc"')
  expect(wrong(new ArrayBuffer(8))).toThrow('[decodeSafetensors] bytes must be a Uint8Array')
  expect(wrong(new Proxy(new Uint8Array(8), {}))).toThrow('[decodeSafetensors] bytes must be a Uint8Array')
  const text = '[decodeSafetensors] bytes: a safetensors file has at least 8 bytes, this has 0'
  const moved = encodeSafetensors({})
  structuredClone(moved, { transfer: [moved.buffer as ArrayBuffer] })
  for (const none of [new Uint8Array(0), moved]) expect(wrong(none)).toThrow(text)
})

const mutants = long ? 4000 : 400

test(`${mutants} mutants load or are FILE_FORMAT errors, and nothing leaks (seed ${runSeed()})`, () => {
  const draw = new Draw(runSeed())
  saveSafetensorsSync(
    file,
    { w: randn([2, 3]), 'net.0.bias': randn([4], { dtype: 'f64' }), i: zeros([3], { dtype: 'i32' }) },
    { metadata: { step: '12' } },
  )
  const whole = readFileSync(file)
  const counts = { loaded: 0, refused: 0 }
  const before = memory().tensors
  for (let i = 0; i < mutants; i++) {
    let bytes: Buffer = whole
    for (let changes = draw.integer(1, 3); changes > 0; changes--)
      bytes = draw.of([damageBytes, damageHeader])(draw, bytes)
    writeFileSync(file, bytes)
    const outcome = (load: () => LoadedTensors): keyof typeof counts =>
      scope(() => {
        try {
          for (const t of Object.values(load().tensors)) expect(t.dataSync().length).toBe(t.size)
          return 'loaded'
        } catch (error) {
          if (!(error instanceof MoeError) || error.code !== 'FILE_FORMAT') throw error
          return 'refused'
        }
      })
    const ofFile = outcome(() => loadSafetensorsSync(file))
    expect(outcome(() => decodeSafetensors(bytes))).toBe(ofFile)
    counts[ofFile]++
    expect(memory().tensors).toBeLessThanOrEqual(before)
  }
  expect(counts.loaded).toBeGreaterThan(mutants / 80)
  expect(counts.refused).toBeGreaterThan(mutants / 4)
})

test('nothing but the file itself is left in the folder', () => {
  expect(readdirSync(folder)).toEqual(['a.safetensors'])
})
