import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { runInNewContext } from 'node:vm'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { Linear, loadCheckpoint, saveCheckpoint } from '../../lib/index.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-extra-'))
afterAll(() => rmSync(folder, { recursive: true }))
const file = join(folder, 'run.safetensors')
const model = new Linear(2, 2)
let before: Buffer
beforeAll(async () => {
  await saveCheckpoint(file, { model, step: 0, extra: 'kept' })
  before = readFileSync(file)
})

const roundTrip = async (extra: unknown) => {
  const path = join(folder, 'other.safetensors')
  await saveCheckpoint(path, { model, step: 3, extra })
  return (await loadCheckpoint(path, { model })).extra
}

function ring(): object {
  const inner: { up?: object } = {}
  return { a: [inner], up: Object.assign(inner, { up: inner }) }
}

const refused: [text: string, extra: unknown][] = [
  ['extra.history.loss[3] must survive JSON, got NaN', { history: { loss: [1, 2, 3, Number.NaN] } }],
  ['extra must survive JSON, got NaN', Number.NaN],
  ['extra.a must survive JSON, got 12n', { a: 12n }],
  ['extra.a must survive JSON, got Map', { a: new Map([[1, 2]]) }],
  ['extra[0] must survive JSON, got Set', [new Set()]],
  ['extra.when must survive JSON, got Date', { when: new Date(0) }],
  ['extra["a b"] must survive JSON, got Float32Array', { 'a b': new Float32Array(2) }],
  ['extra.a must survive JSON, got Buffer', { a: Buffer.alloc(1) }],
  ['extra.a must survive JSON, got a function', { a: () => 1 }],
  ['extra.toJSON must survive JSON, got a function', { toJSON: () => 1 }],
  ['extra.a must survive JSON, got Symbol(x)', { a: Symbol('x') }],
  ['extra must survive JSON, got an object with symbols', { [Symbol('x')]: 1 }],
  ['extra[1] must survive JSON, got undefined', [1, undefined]],
  ['extra must survive JSON, got an array with holes or with names', new Array(3)],
  ['extra must survive JSON, got an array with holes or with names', /a/.exec('a')],
  ['extra must survive JSON, got Number', Object(1)],
  ['extra must survive JSON, got Linear', model],
  ['extra must survive JSON, got Error', new Error('x')],
  ['extra.a[0].up must survive JSON, got an object that contains itself', ring()],
  ['extra exceeds 67108864 characters of JSON', 'x'.repeat(10 ** 8)],
  ['extra must hold at most 8388608 values, an object, array, string or key', Array.from({ length: 9e6 }, () => 0)],
  ['extra must hold at most 8388608 values, an object, array, string or key', twice(30)],
]

/** Every level is there twice: so many values that no text could hold them. */
function twice(levels: number): unknown {
  let value: unknown = 0
  for (let i = 0; i < levels; i++) value = [value, value]
  return value
}

test.each(refused)('%s', async (text, extra) => {
  await expect(saveCheckpoint(file, { model, step: 1, extra })).rejects.toMatchObject({
    name: 'MoeError',
    code: 'OPTION',
    message: expect.stringContaining(`[saveCheckpoint] ${text}`),
  })
  expect(readFileSync(file).equals(before)).toBe(true)
})

test('infinite numbers survive, as in the state of an early stopping that has no best loss yet', async () => {
  const extra = { best: Infinity, history: [-Infinity, 1, Infinity], zero: -0 }
  expect(await roundTrip(extra)).toEqual(extra)
  expect(await roundTrip(-Infinity)).toBe(-Infinity)
})

test('what survives comes back as it was', async () => {
  const odd = JSON.parse('{"__proto__": {"a": 1}, "constructor": 2, "": 3, "7": 4}')
  const values = [
    ...[null, true, 0, -0, 1e-320, 1.7976931348623157e308, 2 ** 53, 'ä 漢 😀 \ud800 \u0000 " \\', [], {}, [[]]],
    odd,
    Object.assign(Object.create(null), { a: 1 }),
    runInNewContext('({ a: [1] })'),
  ]
  for (const value of values) expect([await roundTrip(value)]).toEqual([value])
  const back = (await roundTrip(odd)) as object
  expect(Object.keys(back)).toEqual(Object.keys(odd))
  expect(await roundTrip({ a: undefined, b: 1 })).toStrictEqual({ b: 1 })
  expect(await roundTrip(undefined)).toBe(undefined)
})

test('100,000 levels', async () => {
  let deep: unknown = 1
  for (let i = 0; i < 1e5; i++) deep = i % 2 ? [deep] : { a: deep }
  let back = await roundTrip(deep)
  for (let i = 1e5 - 1; i >= 0; i--) back = i % 2 ? (back as unknown[])[0] : (back as { a: unknown }).a
  expect(back).toBe(1)
})

test('a getter is asked once', async () => {
  let calls = 0
  const extra = {
    get a() {
      return ++calls
    },
  }
  expect(await roundTrip(extra)).toEqual({ a: 1 })
})
