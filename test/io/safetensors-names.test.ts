import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import {
  decodeSafetensors,
  type LoadedTensors,
  type LoadSafetensorsOptions,
  loadSafetensors,
  loadSafetensorsSync,
  memory,
  readSafetensorsHeaderSync,
} from '../../lib/index.js'

// Files of other programs: what the format allows and this package does not write, and the part of a file that is wanted.

const folder = mkdtempSync(join(tmpdir(), 'st-moe-safetensors-names-'))
afterAll(() => rmSync(folder, { recursive: true }))
const file = join(folder, 'a.safetensors')

function write(header: string | object, data: Uint8Array = new Uint8Array(0)): Buffer {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  const bytes = Buffer.concat([length, text, data])
  writeFileSync(file, bytes)
  return bytes
}

/** By all three functions, which must agree. */
async function load(bytes: Buffer, options?: LoadSafetensorsOptions): Promise<string[]> {
  const outcomes: string[] = []
  for (const form of [
    () => decodeSafetensors(bytes, options),
    () => loadSafetensorsSync(file, options),
    () => loadSafetensors(file, options),
  ])
    outcomes.push(await outcome(form))
  const [first, ...rest] = outcomes.map((text) => text.replaceAll(/\[decodeS/g, '[loadS').replaceAll(file, 'bytes'))
  for (const other of rest) expect(other).toBe(first)
  return first.split('\n')
}

async function outcome(form: () => LoadedTensors | Promise<LoadedTensors>): Promise<string> {
  try {
    const { tensors } = await form()
    return Object.entries(tensors)
      .map(([name, value]) => `${name} ${value.dtype} ${value.dataSync()}`)
      .join('\n')
  } catch (error) {
    return `${(error as { code?: string }).code} ${(error as Error).message}`
  }
}

test('white space before the header, as writers that align data to pages pad it', async () => {
  const entry = '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
  for (const space of [' ', ' \n\r\t', ' '.repeat(4000)])
    expect(await load(write(space + entry, Uint8Array.of(3, 4)))).toEqual(['a i32 3,4'])
})

test('I8, I16 and U16 come as i32, wherever they begin', async () => {
  const data = Buffer.alloc(3 + 6 + 4)
  data.set([0x80, 0xff, 0x7f])
  for (const [i, value] of [-32768, -1, 32767].entries()) data.writeInt16LE(value, 3 + 2 * i)
  for (const [i, value] of [65535, 1].entries()) data.writeUInt16LE(value, 9 + 2 * i)
  const bytes = write(
    {
      a: { dtype: 'I8', shape: [3], data_offsets: [0, 3] },
      b: { dtype: 'I16', shape: [3], data_offsets: [3, 9] },
      c: { dtype: 'U16', shape: [2], data_offsets: [9, 13] },
    },
    data,
  )
  expect(await load(bytes)).toEqual(['a i32 -128,-1,127', 'b i32 -32768,-1,32767', 'c i32 65535,1'])
})

const others = ['F8_E4M3', 'F8_E5M2', 'U32', 'U64', 'C64', 'F4', 'F9_NEW', 'constructor', '']

test.each(others)('a tensor of dtype "%s" is an error only if it is read', async (dtype) => {
  const length =
    new Map([
      ['U32', 8],
      ['U64', 16],
      ['C64', 16],
      ['F4', 1],
    ]).get(dtype) ?? 2
  const header = {
    a: { dtype: 'U8', shape: [1], data_offsets: [0, 1] },
    odd: { dtype, shape: [2], data_offsets: [1, 1 + length] },
    z: { dtype: 'U8', shape: [1], data_offsets: [1 + length, 2 + length] },
  }
  const bytes = write(header, Uint8Array.of(7, ...Array(length).fill(1), 9))
  const refused = `FILE_FORMAT [loadSafetensors] bytes: tensor "odd" has dtype ${JSON.stringify(dtype)}, which cannot be read: F32, F64, BF16, F16, I32, BOOL, U8, I8, U16, I16, I64 can`
  const before = memory().tensors
  expect(await load(bytes)).toEqual([refused])
  expect(await load(bytes, { names: ['z', 'odd'] })).toEqual([refused])
  expect(memory().tensors).toBeLessThanOrEqual(before)
  expect(await load(bytes, { names: ['z', 'a'] })).toEqual(['a i32 7', 'z i32 9'])
  expect(await load(bytes, { names: (name) => name !== 'odd' })).toEqual(['a i32 7', 'z i32 9'])
  expect(readSafetensorsHeaderSync(file).tensors.odd).toEqual({ dtype, shape: [2], bytes: length })
})

test('types of the format that cannot be read must still fill their bytes, and no range goes back', async () => {
  for (const [dtype, shape, offsets] of [
    ['F8_E4M3', [2], [0, 3]],
    ['F4', [3], [0, 2]],
    ['F9_NEW', [2], [3, 0]],
  ])
    expect(await load(write({ a: { dtype, shape, data_offsets: offsets } }, new Uint8Array(3)), { names: [] })).toEqual(
      [expect.stringMatching(/^FILE_FORMAT .*tensor "a": .* does not fill bytes/)],
    )
  expect(await load(write('{"a":{"shape":[0],"data_offsets":[0,0]}}'))).toEqual([
    'FILE_FORMAT [loadSafetensors] bytes: tensor "a" has no dtype',
  ])
})

test('a listed name that the file does not hold is an error that lists all such', async () => {
  const bytes = write({ a: { dtype: 'U8', shape: [1], data_offsets: [0, 1] } }, Uint8Array.of(7))
  expect(await load(bytes, { names: ['a', 'b', 'a', 'toString'] })).toEqual([
    'STATE_DICT [loadSafetensors] bytes does not hold:',
    '  b',
    '  toString',
  ])
  expect(await load(bytes, { names: ['a', 'a'] })).toEqual(['a i32 7'])
  for (const names of [[], () => false, undefined])
    expect(await load(bytes, { names })).toEqual([names ? '' : 'a i32 7'])
})

test('what is no option is an OPTION error', async () => {
  const bytes = write({ a: { dtype: 'U8', shape: [1], data_offsets: [0, 1] } }, Uint8Array.of(7))
  const wrong: [options: unknown, text: string][] = [
    [3, 'options must be an object, got 3'],
    [null, 'options must be an object, got null'],
    [['a'], 'options must be an object, got '],
    [new Set(['a']), 'options must be an object, got '],
    [new Map([['names', ['a']]]), 'options must be an object, got '],
    [Buffer.alloc(0), 'options must be an object, got '],
    ['f32', 'options must be an object, got "f32"'],
    [() => true, 'options must be an object, got '],
    [{ name: ['a'] }, 'unknown option "name"; did you mean \'names\'? Known: names'],
    [{ metadata: {} }, 'unknown option "metadata"'],
    [{ names: 'a' }, 'names must be an array or a function, got "a"'],
    [{ names: new Set(['a']) }, 'names must be an array or a function, got '],
    [{ names: ['a', 1] }, 'names[1] must be a string, got 1'],
    [{ names: async () => true }, 'names must return true or false, got '],
    [{ names: { length: 1 } }, 'names must be an array or a function, got '],
  ]
  for (const [options, text] of wrong)
    expect((await load(bytes, options as LoadSafetensorsOptions))[0]).toContain(`OPTION [loadSafetensors] ${text}`)
})
