import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import {
  decodeSafetensors,
  encodeSafetensors,
  loadSafetensors,
  loadSafetensorsSync,
  memory,
  randn,
  readSafetensorsHeaderSync,
  type StateDict,
  saveSafetensors,
  saveSafetensorsSync,
  scope,
  zeros,
} from '../../lib/index.js'
import { bitsOf, listOf } from '../support/numbers.js'
import { temporary } from '../support/temporary.js'

// Tensors in int8, in files of any reader of safetensors.

const place = (name = 'w.safetensors') => join(temporary(), name)
const shown = (state: StateDict) =>
  Object.fromEntries(Object.entries(state).map(([name, t]) => [name, [t.dtype, t.shape, bitsOf(t)]]))
const some = (): StateDict => ({
  a: randn([3, 5, 70]).to('int8'),
  b: randn([4]),
  c: randn([33]).to('int8'),
  d: randn([2, 2]).to('bf16'),
  empty: zeros([0, 8]).to('int8'),
  'no columns': zeros([3, 0]).to('int8'),
})

interface RawHeader {
  __metadata__?: Record<string, string>
  [name: string]: unknown
}

/** A file with the header as `change` leaves it. */
function withHeader(bytes: Uint8Array, change: (header: RawHeader) => void): Uint8Array {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))) as RawHeader
  change(header)
  const text = new TextEncoder().encode(JSON.stringify(header))
  const out = new Uint8Array(8 + text.length + bytes.length - 8 - length)
  new DataView(out.buffer).setBigUint64(0, BigInt(text.length), true)
  out.set(text, 8)
  out.set(bytes.subarray(8 + length), 8 + text.length)
  return out
}

describe('come back with their bits', () => {
  test('from a file', () =>
    scope(() => {
      const [state, path] = [some(), place()]
      saveSafetensorsSync(path, state, { metadata: { made: 'by hand' } })
      const { tensors, metadata } = loadSafetensorsSync(path)
      expect(shown(tensors)).toEqual(shown(state))
      expect(metadata).toEqual({ made: 'by hand' })
    }))

  test('from bytes', () =>
    scope(() => {
      const state = some()
      expect(shown(decodeSafetensors(encodeSafetensors(state)).tensors)).toEqual(shown(state))
    }))

  test('without waiting', async () => {
    const path = place()
    const state = some()
    await saveSafetensors(path, state)
    const { tensors } = await loadSafetensors(path)
    expect(shown(tensors)).toEqual(shown(state))
    for (const t of [...Object.values(tensors), ...Object.values(state)]) t.dispose()
  })

  test('by name', () =>
    scope(() => {
      const [state, path] = [some(), place()]
      saveSafetensorsSync(path, state)
      const { tensors } = loadSafetensorsSync(path, { names: ['c', 'b'] })
      expect(shown(tensors)).toEqual(shown({ c: state.c, b: state.b }))
      expect(() => loadSafetensorsSync(path, { names: ['c.scales'] })).toThrow(/c\.scales/)
    }))
})

test('the header names each once, as int8, and the bytes are integers and scales that others read', () =>
  scope(() => {
    const w = randn([5, 70])
    const compact = w.to('int8')
    const path = place()
    saveSafetensorsSync(path, { w: compact })
    const { tensors } = readSafetensorsHeaderSync(path)
    expect(tensors).toEqual({ w: { dtype: 'int8', shape: [5, 70], bytes: 380 } })

    const raw = withHeader(encodeSafetensors({ w: compact }), (header) => {
      expect(header.__metadata__).toEqual({ 'st_moe.formats': '{"w":"int8"}' })
      header.__metadata__ = {}
    })
    const { tensors: plain } = decodeSafetensors(raw)
    expect([plain.w.dtype, plain['w.scales'].dtype, plain['w.scales'].shape]).toEqual(['i32', 'f16', [5, 3]])
    const [levels, scales] = [listOf(plain.w), listOf(plain['w.scales'].to('f32'))]
    const product = levels.map((q, i) => q * scales[Math.floor(i / 70) * 3 + Math.floor((i % 70) / 32)])
    expect(product).toEqual(listOf(compact.to('f32')))
  }))

test('a name that the scales need is refused, and the file stays as it was', () =>
  scope(() => {
    const path = place()
    saveSafetensorsSync(path, { w: randn([2]) })
    const before = shown(loadSafetensorsSync(path).tensors)
    expect(() => saveSafetensorsSync(path, { w: randn([2, 3]).to('int8'), 'w.scales': randn([1]) })).toThrow(
      /"w\.scales" must not be a tensor, it is the name of the scales of "w"/,
    )
    expect(shown(loadSafetensorsSync(path).tensors)).toEqual(before)
  }))

test('metadata of a file is not carried into one without int8', () =>
  scope(() => {
    const metadata = { 'st_moe.formats': '{"w":"int8"}', kept: 'yes' }
    const { tensors } = decodeSafetensors(encodeSafetensors({ w: randn([2, 3]) }, { metadata }))
    expect(tensors.w.dtype).toBe('f32')
  }))

describe('a damaged file is FILE_FORMAT and leaves no tensor', () => {
  const formats = (value: string) => (header: RawHeader) => {
    header.__metadata__ = { 'st_moe.formats': value }
  }
  test.each<[string, (header: RawHeader) => void, RegExp]>([
    ['formats that are no JSON', formats('{'), /st_moe\.formats is not an object in JSON/],
    ['formats that are null', formats('null'), /st_moe\.formats is not an object in JSON/],
    ['an unknown format', formats('{"w":"int3"}'), /tensor "w" has the format "int3"; int8 is known/],
    ['a tensor that is not there', formats('{"x":"int8"}'), /tensor "x" in int8 needs I8 of that name, and F16/],
    ['a tensor of another type', formats('{"other":"int8"}'), /tensor "other" in int8 needs I8/],
    [
      'scales of another type',
      (header) => Object.assign(header['w.scales'] as object, { dtype: 'BF16' }),
      /tensor "w" in int8 needs I8 of that name, and F16 of the name "w\.scales"/,
    ],
    ['no scales', (header) => delete header['w.scales'], /w/],
    [
      'scales of another shape',
      (header) => Object.assign(header['w.scales'] as object, { shape: [3, 2] }),
      /the scales of "w" \[2, 70\] have shape \[3, 2\]/,
    ],
    [
      'integers of another shape',
      (header) => Object.assign(header.w as object, { shape: [4, 35] }),
      /the scales of "w" \[4, 35\] have shape \[2, 3\]/,
    ],
  ])('%s', (_, change, text) =>
    scope(() => {
      const bytes = encodeSafetensors({ w: randn([2, 70]).to('int8'), other: randn([3]) })
      const damaged = withHeader(bytes, change)
      const path = place()
      writeFileSync(path, damaged)
      const { tensors: before } = memory()
      for (const load of [() => loadSafetensorsSync(path), () => decodeSafetensors(damaged)]) {
        expect(load).toThrow(expect.objectContaining({ code: 'FILE_FORMAT' }))
        expect(load).toThrow(text)
      }
      expect(memory().tensors).toBe(before)
    }),
  )
})
