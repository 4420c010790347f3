import { expect, test } from 'vitest'
import { arange, memory, ones, resetPeakMemory, scope, Tensor, tensor, zeros } from '../../lib/index.js'
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
