import { inspect } from 'node:util'
import { expect, test, vi } from 'vitest'
import {
  captureStep,
  getDefaultDevice,
  Linear,
  memory,
  ones,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { native } from '../../lib/runtime/native.js'

// test/python/answers.test.ts compares the text with that of PyTorch.

const here = getDefaultDevice() === 'cpu' ? 'cpu' : 'cuda:0'

test('a small tensor is printed whole, aligned, with shape, dtype and device', () =>
  scope(() => {
    expect(`${tensor([[1, 2.5, -300]])}`).toBe(`tensor([[   1.0000,    2.5000, -300.0000]], [1, 3], f32, ${here})`)
    expect(`${tensor([[1], [-20]], null, { dtype: 'i32' })}`).toBe(
      `tensor([[  1],\n        [-20]], [2, 1], i32, ${here})`,
    )
    expect(`${tensor([1, Number.NaN, -Infinity], null, { dtype: 'f64' })}`).toBe(
      `tensor([1., nan, -inf], [3], f64, ${here})`,
    )
    expect(`${tensor(Uint16Array.of(0x3f80, 0x4000), null, { dtype: 'bf16' })}`).toBe(
      `tensor([1., 2.], [2], bf16, ${here})`,
    )
    expect(`${tensor(7)}`).toBe(`tensor(7., [], f32, ${here})`)
    expect(`${zeros([0, 3])}`).toBe(`tensor([], [0, 3], f32, ${here})`)
  }))

test('a number between two texts is printed as the even one', () =>
  scope(() => {
    expect(`${tensor([0.03125, 0.09375, -0.03125])}`).toBe(`tensor([ 0.0312,  0.0938, -0.0312], [3], f32, ${here})`)
    expect(`${tensor([1.28125, -1.34375, 1e5])}`).toBe(
      `tensor([ 1.2812e+00, -1.3438e+00,  1.0000e+05], [3], f32, ${here})`,
    )
    expect(`${tensor([0.15625, 2.5], null, { dtype: 'f64' })}`).toBe(`tensor([0.1562, 2.5000], [2], f64, ${here})`)
  }))

test('of a large tensor only what is shown is read', () =>
  scope(() => {
    const x = ones([2000, 3000])
    const { bytes } = memory()
    const spy = vi.spyOn(native, 'toData')
    expect(`${x}`).toBe(
      `tensor([${Array.from({ length: 7 }, (_, i) => (i === 3 ? '...' : '[1., 1., 1.,  ..., 1., 1., 1.]')).join(',\n        ')}], [2000, 3000], f32, ${here})`,
    )
    expect(spy.mock.calls.map(([, data]) => (data as Float64Array).length)).toEqual([36])
    spy.mockRestore()
    expect(memory().bytes).toBe(bytes)
    const deep = zeros([7, 7, 7, 7, 7, 7]) // more long axes than one strided read has room for
    expect(`${deep}`.split('0.').length - 1).toBe(6 ** 6)
  }))

test('inside other objects, after dispose and in a captured step there are no values', () => {
  scope(() => {
    expect(inspect([ones([2])])).toBe(`[ Tensor([2], f32, ${here}) ]`)
    using layer = new Linear(2, 1, { bias: false })
    expect(inspect(layer)).toContain(`weight: Tensor([1, 2], f32, ${here})`)
    expect(inspect(ones([2]), { depth: 0 })).toBe(`tensor([1., 1.], [2], f32, ${here})`)
    const x = ones([2])
    x.dispose()
    expect([`${x}`, inspect(x)]).toEqual(Array(2).fill(`Tensor([2], f32, ${here}, disposed)`))
    const texts: string[] = []
    const step = captureStep(
      () => {
        const y = ones([2])
        texts.push(`${y}`)
        return y
      },
      { device: getDefaultDevice() },
    )
    step.replay()
    step.dispose()
    if (here !== 'cpu') expect(texts[0]).toBe(`Tensor([2], f32, ${here})`)
  })
})

test('toArray nests by shape, and item is a number of every dtype', () =>
  scope(() => {
    const rows: number[][] = tensor([1, 2, 3, 4, 5, 6], [2, 3]).toArray<number[][]>()
    expect(rows).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ])
    expect([tensor(3).toArray(), zeros([2, 0]).toArray(), zeros([0, 2]).toArray()]).toEqual([3, [[], []], []])
    for (const dtype of ['f32', 'f64', 'i32', 'bf16', 'f16'] as const) {
      const x: Tensor = tensor([1, -2], [2, 1], { dtype })
      expect([x.toArray(), x.slice(0, 1).item()]).toEqual([[[1], [-2]], -2])
    }
    expect(() => zeros([2 ** 26, 2, 0]).toArray()).toThrow(
      /\[Tensor.toArray\] \[67108864, 2, 0\] has more than 2\^26 numbers; use dataSync/,
    )
    expect(() => ones([2]).item()).toThrow(/\[Tensor.item\] needs one element, this has shape \[2\]/)
  }))
