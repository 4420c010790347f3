import { describe, expect, test } from 'vitest'
import { captureStep, MoeError, ops, quantize, randn, scope, type Tensor, tensor } from '../../lib/index.js'
import { bitsOf, listOf, relativeError, values } from '../support/numbers.js'

const stored = (data: number[], shape = [1, data.length]) =>
  listOf(quantize(tensor(Float32Array.from(data), shape), 'int8').tensor.to('f32'))

// The error of the best of 2,000 scales, with each element rounded to nearest.
function leastError(block: number[]): number {
  const largest = Math.max(...block.map(Math.abs))
  let least = Infinity
  for (let i = 0; i <= 2000; i++) {
    const scale = largest / (120 + i * 0.004)
    const error = block.reduce((sum, x) => {
      const level = Math.max(-127, Math.min(127, Math.round(x / scale)))
      return sum + (x - level * scale) ** 2
    }, 0)
    least = Math.min(least, error)
  }
  return least
}

describe('int8', () => {
  test.each([32, 7, 64, 100, 1])('rows of %i: each block of 32 is nearly as close as any scale allows', (columns) =>
    scope(() => {
      const [rows, w] = [20, randn([20, columns])]
      const [exact, got] = [listOf(w), listOf(w.to('int8').to('f32'))]
      let [squares, least] = [0, 0]
      for (let row = 0; row < rows; row++)
        for (let at = 0; at < columns; at += 32) {
          const [begin, end] = [row * columns + at, row * columns + Math.min(columns, at + 32)]
          const largest = Math.max(...exact.slice(begin, end).map(Math.abs))
          for (let i = begin; i < end; i++)
            expect(Math.abs(got[i] - exact[i])).toBeLessThanOrEqual((0.502 * largest) / 125)
          squares += exact.slice(begin, end).reduce((sum, x, i) => sum + (x - got[begin + i]) ** 2, 0)
          least += leastError(exact.slice(begin, end))
        }
      expect(squares).toBeLessThan(columns === 1 ? 1e-5 : (columns < 32 ? 2.5 : 1.35) * least)
    }),
  )

  test('numbers that int8 has stay as they are', () =>
    scope(() => {
      const once = randn([30, 70]).to('int8')
      expect(bitsOf(once.to('f32').to('int8'))).toBe(bitsOf(once))
      expect(stored([127, -127, 64, 1, 0, -1])).toEqual([127, -127, 64, 1, 0, -1])
    }))

  test('a block of one size does not lose one of another', () => {
    const [small, large] = [
      Array.from({ length: 32 }, (_, i) => (i - 16) / 1e4),
      Array.from({ length: 32 }, (_, i) => i * 1e4),
    ]
    const got = stored([...large, ...small])
    expect(relativeError(got.slice(32), small)).toBeLessThan(0.01)
    expect(relativeError(got.slice(0, 32), large)).toBeLessThan(0.01)
  })

  test('a block with an element that is not finite, or too large, is NaN, and others are not', () => {
    const numbers = Array.from({ length: 31 }, () => 127)
    for (const wrong of [Number.NaN, Infinity, -Infinity, 8.4e6]) {
      const got = stored([...numbers, 127, ...numbers, wrong])
      expect(got.slice(0, 32)).toEqual([...numbers, 127])
      expect(got.slice(32).every(Number.isNaN)).toBe(true)
    }
    expect(relativeError(stored([8e6, 0, 4e6]), [8e6, 0, 4e6])).toBeLessThan(0.005)
  })

  test('zeros, and a block of less than the smallest scale, are 0', () => {
    expect(stored([0, -0, 0])).toEqual([0, 0, 0])
    expect(stored([3e-6, -1e-6])).toEqual([0, 0])
    expect(stored([1e-3, 3e-6])[0]).toBeCloseTo(1e-3, 5)
  })
})

test.each(['f32', 'f64', 'bf16', 'f16'] as const)('the error is that of the stored weights of %s', (dtype) =>
  scope(() => {
    const w = randn([12, 50]).to(dtype)
    const wide = (x: Tensor) => values(x.to('f64'))
    for (const format of ['int8', 'bf16', 'f16', 'f32'] as const) {
      const { tensor, error } = quantize(w, format)
      expect([tensor.dtype, tensor.requiresGrad, tensor === w]).toEqual([format, false, false])
      expect(Math.abs(error - relativeError(wide(tensor), wide(w)))).toBeLessThan(1e-6 * error + 1e-12)
      expect(error).toBeLessThan({ int8: 0.0065, bf16: 0.003, f16: 4e-4, f32: 1e-7 }[format])
    }
  }),
)

test('the error of zeros is 0, of what is not finite NaN, and of nothing 0', () =>
  scope(() => {
    const errorOf = (data: number[], shape: number[]) => quantize(tensor(Float32Array.from(data), shape), 'int8').error
    expect(errorOf([0, 0], [1, 2])).toBe(0)
    expect(errorOf([1, Infinity], [1, 2])).toBeNaN()
    for (const shape of [[0, 4], [3, 0], [0]]) expect(errorOf([], shape)).toBe(0)
  }))

test('weights that train keep their history out of it', () =>
  scope(() => {
    const w = randn([4, 40])
    w.requiresGrad = true
    const { tensor: compact } = quantize(w, 'int8')
    expect(compact.requiresGrad).toBe(false)
    expect(bitsOf(compact)).toBe(bitsOf(w.detach().to('int8')))
    expect(bitsOf(quantize(compact, 'int8').tensor)).toBe(bitsOf(compact))
  }))

test('rows, reshapes and copies of int8', () =>
  scope(() => {
    const w = randn([3, 5, 40])
    const compact = w.to('int8')
    const wide = compact.to('f32')
    expect(compact.shape).toEqual([3, 5, 40])
    const same = (got: Tensor, want: Tensor) => expect(listOf(got.to('f32'))).toEqual(listOf(want))
    same(compact.reshape([15, 40]), wide.reshape([15, 40]))
    same(ops.slice(compact, 0, 1, 3), ops.slice(wide, 0, 1, 3))
    same(compact.clone(), wide)
    same(compact.to('f16'), wide.to('f16').to('f32'))
    expect(compact.toArray()).toEqual(wide.toArray())
    expect(`${compact}`).toContain('int8')
    expect(() => compact.reshape([40, 15])).toThrow(/must keep the rows of int8/)
    expect(() => ops.slice(compact, 2, 0, 8)).toThrow(/int8 is copied by whole rows only/)
    expect(() => compact.dataSync()).toThrow(/share scales; convert them with to\('f32'\) first/)
  }))

test('clear errors', () =>
  scope(() => {
    const refuse = (code: string, act: () => unknown, text: RegExp) => {
      expect(act).toThrow(MoeError)
      expect(act).toThrow(expect.objectContaining({ code }))
      expect(act).toThrow(text)
    }
    refuse('DTYPE', () => quantize(tensor(Int32Array.of(1)), 'int8'), /w must be a floating-point tensor, got i32/)
    refuse('DTYPE', () => quantize(randn([2, 2]), 'int4' as 'int8'), /dtype must be one of f32, bf16, f16, int8/)
    refuse('SHAPE', () => quantize(tensor(Float32Array.of(1), []), 'int8'), /int8 needs rows, got shape \[\]/)
    refuse('DTYPE', () => randn([2, 2], { dtype: 'int8' as 'f32' }), /dtype must be/)
    refuse('UNSUPPORTED', () => captureStep(() => quantize(randn([2, 2]), 'int8').tensor), /captured/)
  }))
