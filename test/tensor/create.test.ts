import { expect, test } from 'vitest'
import { arange, full, memory, ones, resetPeakMemory, scope, Tensor, tensor, zeros } from '../../lib/index.js'
import { values } from '../support/numbers.js'

const list = (x: Tensor): number[] => Array.from(values(x))

test('arange has every element before the end', () =>
  scope(() => {
    expect(list(arange(4))).toEqual([0, 1, 2, 3])
    expect(list(arange(2, 5))).toEqual([2, 3, 4])
    expect(list(arange(1, 6, 2))).toEqual([1, 3, 5])
    expect(list(arange(1, 5, 2))).toEqual([1, 3])
    expect(list(arange(5, 0, -2))).toEqual([5, 3, 1])
    expect(list(arange(0, 1, 0.3, { dtype: 'f64' }))).toEqual([0, 0.3, 0.6, 0.3 * 3])
    expect(list(arange(3, 3))).toEqual([])
    expect(list(arange(3, 1))).toEqual([])
    expect([arange(3).dtype, arange(0, 1, 0.5).dtype]).toEqual(['i32', 'f32'])
  }))

test('length 1 is stretched to any length, 0 too', () =>
  scope(() => {
    for (const [a, b, shape] of [
      [
        [1, 3],
        [0, 3],
        [0, 3],
      ],
      [
        [0, 3],
        [1, 3],
        [0, 3],
      ],
      [[2, 1], [3], [2, 3]],
      [[], [2, 0], [2, 0]],
      [
        [4, 1, 3],
        [5, 1],
        [4, 5, 3],
      ],
    ]) {
      const [x, y] = [ones(a, { requiresGrad: true }), ones(b, { requiresGrad: true })]
      const sum = x.add(y)
      expect(sum.shape).toEqual(shape)
      expect(list(sum)).toEqual(Array(sum.size).fill(2))
      sum.sum().backward()
      expect([x.grad!.shape, y.grad!.shape]).toEqual([a, b])
      for (const leaf of [x, y]) expect(list(leaf.grad!)).toEqual(Array(leaf.size).fill(sum.size / leaf.size || 0))
    }
  }))

test('a mean over axes of which one is empty is NaN', () =>
  scope(() => {
    for (const shape of [
      [2, 0, 3],
      [0, 4, 2],
      [2, 3, 0],
      [0, 0, 2],
    ])
      for (const axes of [
        [0, 1],
        [1, 2],
        [0, 2],
        [0, 1, 2],
      ]) {
        const mean = zeros(shape).mean(axes)
        const empty = axes.some((axis) => shape[axis] === 0)
        expect(list(mean), `${shape} over ${axes}`).toEqual(Array(mean.size).fill(empty ? Number.NaN : 0))
      }
    const x = zeros([2, 0, 3], { requiresGrad: true })
    x.mean([0, 1]).sum().backward()
    expect(x.grad!.shape).toEqual([2, 0, 3])
  }))

test('arange of integers is i32 if its elements fit, and never rounds them', () =>
  scope(() => {
    const big = 2 ** 31
    const ends = arange(big - 3, big)
    expect([ends.dtype, list(ends)]).toEqual(['i32', [big - 3, big - 2, big - 1]])
    expect([arange(-big, 1 - big).dtype, list(arange(-big, 1 - big))]).toEqual(['i32', [-big]])
    expect(list(arange(big - 1, big + 5, 6))).toEqual([big - 1])
    expect(list(arange(0, big + 1, big / 2))).toEqual([0, big / 2, big])
    expect(arange(0, big + 1, big / 2).dtype).toBe('f32')
    expect(arange(big, big).dtype).toBe('i32')
    expect(() => arange(big - 1, big + 2)).toThrow(/neither i32 nor f32 has the element 2147483647: pass a dtype, such/)
    expect(list(arange(big - 1, big + 2, 1, { dtype: 'f64' }))).toEqual([big - 1, big, big + 1])
    expect(list(arange(big, big + 3, 1, { dtype: 'f32' }))).toEqual([big, big, big])
  }))

test('f64, i32 and plain numbers are rounded to bf16 and f16 once', () =>
  scope(() => {
    // A number next to a half, which float32 would turn into it.
    const [bf16, f16] = [1 + 2 ** -8, 1 + 2 ** -11]
    for (const [dtype, half, last] of [
      ['bf16', bf16, 2 ** -7],
      ['f16', f16, 2 ** -10],
    ] as const) {
      const numbers = [half + 2 ** -40, half - 2 ** -40, -half - 2 ** -40, half, half + last]
      const rounded = [1 + last, 1, -1 - last, 1, 1 + 2 * last]
      expect(list(tensor(Float64Array.from(numbers)).to(dtype).to('f64')), dtype).toEqual(rounded)
      expect(list(tensor(numbers, null, { dtype }).to('f64')), dtype).toEqual(rounded)
      for (const [i, value] of numbers.entries())
        expect(list(full([1], value, { dtype }).to('f64'))).toEqual([rounded[i]])
    }
    const tiny = [2 ** -25 + 2 ** -60, 2 ** -25, 3 * 2 ** -26, 65519.999999, 65520, 1e300]
    expect(list(tensor(Float64Array.from(tiny)).to('f16').to('f64'))).toEqual([
      2 ** -24,
      0,
      2 ** -24,
      65504,
      Infinity,
      Infinity,
    ])
    const small = [2 ** -134 + 2 ** -180, 2 ** -134, 1e-300, -1e-300, Number.MAX_VALUE, Number.NaN]
    expect(list(tensor(Float64Array.from(small)).to('bf16').to('f64'))).toEqual([
      2 ** -133,
      0,
      0,
      -0,
      Infinity,
      Number.NaN,
    ])
    expect(
      list(
        tensor(Int32Array.of(2 ** 30 + 2 ** 22 + 1, 2 ** 30 + 2 ** 22))
          .to('bf16')
          .to('f64'),
      ),
    ).toEqual([2 ** 30 + 2 ** 23, 2 ** 30])
  }))

test('bf16 and f16 round halves to even', () =>
  scope(() => {
    const through = (dtype: 'bf16' | 'f16', ...numbers: number[]) => list(tensor(numbers).to(dtype).to('f32'))
    const half = 2 ** -8
    expect(through('bf16', 1 + half, 1 + 3 * half, 1 + 5 * half, -1 - half)).toEqual([
      1,
      1 + 4 * half,
      1 + 4 * half,
      -1,
    ])
    expect(through('bf16', 1 + half + 2 ** -20, 1 + 3 * half - 2 ** -20)).toEqual([1 + 2 * half, 1 + 2 * half])
    const fine = 2 ** -11
    expect(through('f16', 1 + fine, 1 + 3 * fine, 65519, 65520, 2 ** -25, 3 * 2 ** -25)).toEqual([
      1,
      1 + 4 * fine,
      65504,
      Infinity,
      0,
      2 ** -23,
    ])
  }))

test('the peak after a reset is what is in use', () =>
  scope(() => {
    const held = zeros([1000])
    zeros([5000]).dispose()
    resetPeakMemory()
    const { bytes, peakBytes } = memory()
    expect(bytes).toBeGreaterThanOrEqual(4000)
    expect(peakBytes).toBe(bytes)
    expect(held.disposed).toBe(false)
  }))

test('a tensor can have properties of other names, and is an object as any other', () => {
  const x = Object.assign(ones([2]), { label: 'x', '1st': 1, [Symbol.for('test')]: 2 })
  expect([x.label, x['1st'], Object.keys(x).includes('label')]).toEqual(['x', 1, true])
  expect([x instanceof Tensor, x instanceof Object, 'shape' in x, '0' in x]).toEqual([true, true, true, false])
  expect(Array.from(x.dataSync())).toEqual([1, 1])
})

test('a sum over no axes is a copy', () => {
  const x = ones([2, 3])
  const y = x.sum([])
  x.copyFrom(new Float32Array(6))
  expect([y.shape, Array.from(y.dataSync())]).toEqual([
    [2, 3],
    [1, 1, 1, 1, 1, 1],
  ])
  expect(ones([]).sum([]).item()).toBe(1)
})
