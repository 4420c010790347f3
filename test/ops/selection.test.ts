import { afterEach, describe, expect, test } from 'vitest'
import {
  captureStep,
  Generator,
  getDefaultDevice,
  getNumThreads,
  manualSeed,
  ones,
  ops,
  randn,
  randperm,
  scope,
  setNumThreads,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { live } from '../support/baseline.js'
import { listOf } from '../support/numbers.js'

const i32 = (numbers: number[], shape?: number[]) => tensor(Int32Array.from(numbers), shape)
const nan = Number.NaN

describe.each(['f32', 'f64'] as const)('extrema of %s', (dtype) => {
  const x = tensor([3, -1, 7, 7, -5, 2, 0, -5, 1, 7, 4, 6], [2, 3, 2], { dtype })

  test('over all axes, one, several and none', () =>
    scope(() => {
      expect([ops.max(x).item(), ops.min(x).item(), ops.argmax(x).item(), ops.argmin(x).item()]).toEqual([7, -5, 2, 4])
      expect([x.max().shape, x.max(1, true).shape, x.argmin(-1).shape, x.argmax(0, true).shape]).toEqual([
        [],
        [2, 1, 2],
        [2, 3],
        [1, 3, 2],
      ])
      expect(listOf(x.max(1))).toEqual([7, 7, 4, 7])
      expect(listOf(x.argmax(1))).toEqual([1, 1, 2, 1])
      expect(listOf(x.min([0, 2]))).toEqual([-5, 1, -5])
      expect(listOf(x.min([1, 2]))).toEqual([-5, -5])
      expect(listOf(x.argmin(0))).toEqual([1, 1, 1, 0, 0, 0])
      expect(listOf(x.max([]))).toEqual(listOf(x))
      expect(ops.argmax(tensor(4, null, { dtype })).item()).toBe(0)
      expect([x.max().dtype, x.argmax().dtype]).toEqual([dtype, 'i32'])
    }))

  test('NaN wins, the first one, and infinities are numbers', () =>
    scope(() => {
      const y = tensor([1, nan, 3, nan, -Infinity, -Infinity, -Infinity, -Infinity], [2, 4], { dtype })
      expect(listOf(y.max(1))).toEqual([nan, -Infinity])
      expect(listOf(y.min(1))).toEqual([nan, -Infinity])
      expect([listOf(y.argmax(1)), listOf(y.argmin(1))]).toEqual([
        [1, 0],
        [1, 0],
      ])
      expect(listOf(y.max(0))).toEqual([1, nan, 3, nan])
      expect(listOf(y.argmin(0))).toEqual([1, 0, 1, 0])
      const two = tensor([nan, 1, nan, 2, nan, nan], [3, 2], { dtype })
      expect([listOf(two.argmax(0)), listOf(two.argmin(0)), two.argmax().item()]).toEqual([[0, 2], [0, 2], 0])
    }))

  test('the gradient goes to the first of equal elements', () =>
    scope(() => {
      const gradient = (f: (x: Tensor) => Tensor, numbers = [3, 7, 7, 1, 1, 7]) => {
        const leaf = tensor(numbers, [2, 3], { dtype, requiresGrad: true })
        f(leaf).mul(2).sum().backward()
        return listOf(leaf.grad!)
      }
      expect(gradient((x) => x.max())).toEqual([0, 2, 0, 0, 0, 0])
      expect(gradient((x) => x.max(1))).toEqual([0, 2, 0, 0, 0, 2])
      expect(gradient((x) => x.min(0, true))).toEqual([0, 0, 2, 2, 2, 0])
      const apart = (x: Tensor) => x.reshape([2, 1, 3]).max([0, 2])
      expect(gradient(apart, [1, 1, 7, 7, 1, 1])).toEqual([0, 0, 2, 0, 0, 0])
    }))
})

test('gather takes entries along an axis, of any dtype', () =>
  scope(() => {
    for (const dtype of ['f32', 'f64', 'i32', 'bf16', 'f16'] as const) {
      const x = tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [2, 3, 2], { dtype })
      const read = (y: Tensor) => listOf(y.to('f32'))
      expect(read(x.gather(1, i32([2, 0, 1, 1, 0, 2, 2, 2], [2, 2, 2])))).toEqual([4, 1, 2, 3, 6, 11, 10, 11])
      expect(read(x.gather(0, i32([1, 0, 1], [1, 3, 1])))).toEqual([6, 2, 10])
      expect(read(x.gather(-1, i32([1, 1, 0], [1, 1, 3])))).toEqual([1, 1, 0])
      expect(x.gather(0, zeros([0, 3, 2], { dtype: 'i32' })).shape).toEqual([0, 3, 2])
      expect(read(x.indexSelect(1, i32([2, 0])))).toEqual([4, 5, 0, 1, 10, 11, 6, 7])
      expect(read(x.indexSelect(0, i32([1])))).toEqual([6, 7, 8, 9, 10, 11])
      expect(read(x.indexSelect(-1, i32([1, 1])))).toEqual([1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11])
    }
  }))

test('gradients of repeated indices have the same bits for any number of threads', () =>
  scope(() => {
    const threads = getNumThreads()
    const gradients = [1, 2, 3].map((count) => {
      setNumThreads(count)
      manualSeed(3)
      return [
        [3, 50, 700],
        [1, 9, 1],
      ].flatMap((shape) => {
        const x = randn(shape, { requiresGrad: true })
        const index = randperm(400)
          .to('f32')
          .mul(shape[1] / 400)
          .to('i32')
        const weight = randn([shape[0], 400, shape[2]])
        const all = index.reshape([1, 400, 1]).to('f32').add(zeros(weight.shape)).to('i32')
        ops.gather(x, 1, all).mul(weight).sum().backward()
        const gathered = listOf(x.grad!)
        x.grad = null
        ops.indexSelect(x, 1, index).mul(weight).sum().backward()
        expect(listOf(x.grad!)).toEqual(gathered)
        return gathered
      })
    })
    setNumThreads(threads)
    expect(gradients[1]).toEqual(gradients[0])
    expect(gradients[2]).toEqual(gradients[0])
  }))

describe('randperm', () => {
  test('is a permutation, by the seed alone', () =>
    scope(() => {
      for (const n of [0, 1, 2, 5, 1000, 70_001]) {
        const order = listOf(randperm(n, { generator: new Generator(5) }))
        expect(order.toSorted((a, b) => a - b)).toEqual(Array.from({ length: n }, (_, i) => i))
        expect(listOf(randperm(n, { generator: new Generator(5), device: 'cpu' }))).toEqual(order)
      }
      const generator = new Generator(5)
      expect(listOf(randperm(100, { generator }))).not.toEqual(listOf(randperm(100, { generator })))
      expect(generator.step).toBe(2)
    }))

  test('every order is as probable', () =>
    scope(() => {
      const counts = new Map<string, number>()
      const draws = 24 * 200
      const generator = new Generator(11)
      for (let i = 0; i < draws; i++) {
        const order = scope(() => listOf(randperm(4, { generator, device: 'cpu' })).join())
        counts.set(order, (counts.get(order) ?? 0) + 1)
      }
      expect(counts.size).toBe(24)
      const chiSquare = [...counts.values()].reduce((sum, count) => sum + (count - 200) ** 2 / 200, 0)
      expect(chiSquare).toBeLessThan(49.7) // of 23 degrees of freedom with probability 0.999
    }))

  test('a captured step samples the next one at each replay', () =>
    scope(() => {
      const [generator, eager] = [new Generator(5), new Generator(5)]
      const step = captureStep(() => randperm(50, { generator }), { device: getDefaultDevice() })
      eager.setState(generator)
      for (const _ of [1, 2, 3])
        expect(listOf(step.replay())).toEqual(listOf(randperm(50, { generator: eager, device: 'cpu' })))
      step.dispose()
    }))
})

describe('errors leave nothing behind', () => {
  const x = ones([2, 3])
  const index = i32([0, 5], [2, 1])
  const before = live()
  afterEach(() => expect(live()).toEqual(before))
  const wrong: [string, () => unknown, string, RegExp][] = [
    ['max of integers', () => ops.max(index), 'DTYPE', /^\[max\] x must be f32 or f64, got i32/],
    [
      'max of nothing',
      () => ops.max(zeros([2, 0]), 1),
      'SHAPE',
      /^\[max\] x must have entries along axis, got \[2, 0\]/,
    ],
    ['argmax over two axes', () => ops.argmax(x, [0, 1] as never), 'OPTION', /^\[argmax\] axis must be one axis/],
    ['an axis that is not there', () => x.min(2), 'OPTION', /^\[min\] axis must be an integer from -2 to 1, got 2/],
    ['gather by floats', () => ops.gather(x, 0, x), 'DTYPE', /^\[gather\] index must be i32, got f32/],
    [
      'an index that is too wide',
      () => ops.gather(x, 1, zeros([3, 1], { dtype: 'i32' })),
      'SHAPE',
      /^\[gather\] index must be \[at most 2, any\], got \[3, 1\]/,
    ],
    ['an index outside', () => listOf(ops.gather(x, 1, index)), 'OPTION', /index .*5/],
    ['a row outside', () => listOf(ops.indexSelect(x, 0, i32([-1]))), 'OPTION', /index .*-1/],
    [
      'rows of a matrix',
      () => ops.indexSelect(x, 0, index),
      'SHAPE',
      /^\[indexSelect\] index must be \[K\], got \[2, 1\]/,
    ],
    [
      'half a permutation',
      () => randperm(1.5),
      'OPTION',
      /^\[randperm\] n must be an integer from 0 to 2147483647, got 1.5/,
    ],
  ]
  test.each(wrong)('%s', (_what, call, code, message) => {
    expect(() => scope(call)).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }))
  })
})
