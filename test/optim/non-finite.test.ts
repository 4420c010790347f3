import { describe, expect, test } from 'vitest'
import { full, Linear, MoE, ones, ops, RMSNorm, scope, tensor } from '../../lib/index.js'

// What `onNonFinite: 'throw'` accepts, and what it finds.

const places = [0, 1, 63, 64, 70, 16383, 32768, 40004] // in and around a vector, and of several blocks

describe.each(['f32', 'f64'] as const)("onNonFinite: 'throw' in %s", (dtype) => {
  const layer = () =>
    new MoE({ dim: 5, experts: [1, 2].map(() => new Linear(5, 5, { dtype })), dtype, onNonFinite: 'throw' })
  const forward = (numbers: Float64Array) =>
    scope(() =>
      layer()
        .forward(tensor(numbers, [1, numbers.length / 5, 5], { dtype }))
        .outputs.abs()
        .sum()
        .item(),
    )

  test('large and small numbers are finite', () => {
    const large = dtype === 'f32' ? 1e36 : 1e300
    expect(forward(new Float64Array(40).fill(large))).toBeGreaterThan(large / 1000)
    expect(forward(new Float64Array(40).fill(-1 / large))).toBeGreaterThan(0)
  })

  test.each([NaN, Infinity, -Infinity])('%s is found wherever it is', (bad) => {
    for (const place of places) {
      const numbers = new Float64Array(40005).fill(1)
      numbers[place] = bad
      expect(() => forward(numbers)).toThrow(expect.objectContaining({ code: 'NON_FINITE' }))
    }
  })

  test('a result that overflows is found', () => {
    const largest = dtype === 'f32' ? 3.4e38 : 1.7e308
    const expert = () => {
      const linear = new Linear(5, 5, { dtype, bias: false })
      linear.weight.copyFrom(ones([5, 5], { dtype }))
      return linear
    }
    const moe = new MoE({ dim: 5, experts: [expert(), expert()], dtype, onNonFinite: 'throw' })
    const x = tensor(new Float64Array(40).fill(largest), [1, 8, 5], { dtype })
    expect(() => moe.forward(x)).toThrow(/the output must be finite/)
    for (const what of [moe, x]) what.dispose()
  })
})

describe.each(['f32', 'f64'] as const)('an infinity in %s', (dtype) => {
  const numbers = (rows: number, columns: number) => {
    const values = new Float64Array(rows * columns).fill(1)
    values[columns + 1] = Infinity
    return tensor(values, [rows, columns], { dtype })
  }

  test.each([
    [3, 5],
    [200, 8],
    [3, 40004],
  ])('makes only the sums infinite that it belongs to: [%d, %d]', (rows, columns) =>
    scope(() => {
      const x = numbers(rows, columns)
      const at = (size: number, index: number, value: number) =>
        Array.from({ length: size }, (_, i) => (i === index ? Infinity : value))
      expect(x.sum().item()).toBe(Infinity)
      expect(Array.from(x.sum(1).dataSync())).toEqual(at(rows, 1, columns))
      expect(Array.from(x.sum(0).dataSync())).toEqual(at(columns, 1, rows))
    }),
  )

  test('leaves zeros of the rest of a row that is normalized', () =>
    scope(() => {
      const y = Array.from(new RMSNorm(8, { dtype }).forward(numbers(2, 8)).dataSync())
      expect(y.slice(8)).toEqual([0, Number.NaN, 0, 0, 0, 0, 0, 0])
    }))
})

// Where operands are rounded, hidden rows may be stored with padding: an infinity times its zeros is not a number.
test.each(['f32', 'bf16'] as const)(
  'an infinity that relu makes 0 does not reach the output, computed in %s',
  (computeDtype) =>
    scope(() => {
      const weights = { w1: full([1, 5, 3], -1), b1: null, w2: ones([1, 3, 5]), b2: null }
      const x = tensor(new Float32Array([1, Infinity, 1, 1, 1, 1]), [2, 3], { requiresGrad: true })
      const y = ops.expertFfn(x, null, weights, { activation: 'relu', computeDtype })
      expect(Array.from(y.dataSync())).toEqual(new Array(6).fill(0))
      y.backward(ones([2, 3]))
      expect(Array.from(x.grad?.dataSync() ?? [])).toEqual(new Array(6).fill(0))
    }),
)
