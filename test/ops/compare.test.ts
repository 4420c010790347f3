import { afterEach, describe, expect, test } from 'vitest'
import { ones, ops, randn, scope, type Tensor, tensor, zeros } from '../../lib/index.js'
import { live } from '../support/baseline.js'
import { listOf, relativeError, values } from '../support/numbers.js'

const numbers = [-1.5, 0, -0, 2, 2.25, Number.NaN, Infinity, -Infinity]
const rules: Record<string, (a: number, b: number) => number> = {
  less: (a, b) => Number(a < b),
  lessEqual: (a, b) => Number(a <= b),
  greater: (a, b) => Number(a > b),
  greaterEqual: (a, b) => Number(a >= b),
  equal: (a, b) => Number(a === b),
  maximum: (a, b) => Math.max(a, b) + 0,
  minimum: (a, b) => Math.min(a, b) + 0,
}

describe.each(['f32', 'f64', 'i32'] as const)('%s', (dtype) => {
  const list = dtype === 'i32' ? [-(2 ** 31), -1, 0, 1, 7, 2 ** 31 - 1] : numbers
  const n = list.length
  const [a, b] = [tensor(list, [n, 1], { dtype }), tensor(list, [n], { dtype })]

  test.each(Object.keys(rules))('%s of every pair', (name) =>
    scope(() => {
      const op = ops[name as 'less']
      const y = op(a, b)
      expect(y.dtype).toBe(/^m/.test(name) ? dtype : 'i32')
      expect(y.shape).toEqual([n, n])
      expect(listOf(y).map((v) => v + 0)).toEqual(list.flatMap((p) => list.map((q) => rules[name](p, q))))
      expect(listOf(op(b, 2)).map((v) => v + 0)).toEqual(list.map((p) => rules[name](p, 2)))
    }),
  )

  test('where selects: what is not selected has no influence, and signs of zeros stay', () =>
    scope(() => {
      const condition = ops.less(a, 2)
      const y = listOf(ops.where(condition, a, b))
      const wanted = list.flatMap((p) => list.map((q) => (p < 2 ? p : q)))
      expect(y.map((v) => [v, Object.is(v, -0)])).toEqual(wanted.map((v) => [v, Object.is(v, -0)]))
      expect(ops.where(ones([3, 1, 1]), a, b).shape).toEqual([3, n, n])
    }))
})

test('a number may come first', () =>
  scope(() => {
    const x = tensor([1, 2, 4], null, { requiresGrad: true })
    const results = [ops.sub(2, x), ops.div(8, x), ops.pow(2, x), ops.add(1, x), ops.mul(3, x), ops.maximum(2, x)]
    expect(results.map(listOf)).toEqual([
      [1, 0, -2],
      [8, 4, 2],
      [2, 4, 16],
      [2, 3, 5],
      [3, 6, 12],
      [2, 2, 4],
    ])
    expect([ops.less(2, x), ops.greaterEqual(2, x)].map(listOf)).toEqual([
      [0, 0, 1],
      [1, 1, 0],
    ])
    expect(listOf(ops.where(ops.less(x, 3), 0, x))).toEqual([0, 0, 4])
    expect(
      ops
        .sub(2, ones([40_000]))
        .sum()
        .item(),
    ).toBe(40_000) // more than a thread takes at once
    ops.div(8, x).sum().backward()
    expect(listOf(x.grad!)).toEqual([-8, -2, -0.5])
    expect(listOf(ops.sub(10, tensor([1, 2], [2], { dtype: 'i32' })))).toEqual([9, 8])
  }))

test('a number first leaves nothing behind but the result', () => {
  const x = ones([2])
  const before = live().tensors
  const results = [ops.sub(2, x), ops.less(2, x), ops.where(x, 2, x)]
  expect(live().tensors).toBe(before + results.length)
  for (const y of [x, ...results]) y.dispose()
})

test('equal limits of clamp', () => scope(() => expect(listOf(ops.clamp(tensor([-1, 2, 3]), 2, 2))).toEqual([2, 2, 2])))

test('a slice may be empty', () =>
  scope(() => {
    const x = ones([3, 2], { requiresGrad: true })
    const slices = [x.slice(0, 1, 1), x.slice(0, 3), x.slice(1, -1, 1)]
    expect(slices.map(({ shape }) => shape)).toEqual([
      [0, 2],
      [0, 2],
      [3, 0],
    ])
    ops.concat([slices[0], x], 0).sum().backward()
    expect(listOf(x.grad!)).toEqual(Array(6).fill(1))
    expect(() => x.slice(0, 2, 1)).toThrow(/^\[slice\] end must not be before start, got 2 to 1/)
  }))

test('pow is that of JavaScript', () =>
  scope(() => {
    const [a, b] = [
      [2, 0, 9, -2, 1.5, 0],
      [3, 0, 0.5, 3, -2, 2],
    ]
    const y = listOf(ops.pow(tensor(a), tensor(b)))
    for (const [i, v] of y.entries()) expect(v).toBeCloseTo(a[i] ** b[i], 5)
    const x = tensor([0, 3], null, { requiresGrad: true })
    ops
      .pow(x, tensor([0, 2]))
      .sum()
      .backward()
    expect(listOf(x.grad!).map((v) => v + 0)).toEqual([0, 6])
  }))

test('gradients: ties share, and nothing comes from what is not selected', () =>
  scope(() => {
    const grads = (f: (a: Tensor, b: Tensor) => Tensor, a: number[], b: number[]) => {
      const [x, y] = [a, b].map((list) => tensor(list, null, { requiresGrad: true }))
      f(x, y).sum().backward()
      return [x, y].map((t) => listOf(t.grad!).map((v) => v + 0))
    }
    expect(grads(ops.maximum, [1, 5, 2], [1, 2, 7])).toEqual([
      [0.5, 1, 0],
      [0.5, 0, 1],
    ])
    expect(grads(ops.minimum, [1, 5, 2], [1, 2, 7])).toEqual([
      [0.5, 0, 1],
      [0.5, 1, 0],
    ])
    const chosen = (a: Tensor, b: Tensor) => ops.where(tensor([1, 0, 1]), a.log(), b)
    expect(grads(chosen, [1, 1, 2], [3, 3, 3])).toEqual([
      [1, 0, 0.5],
      [0, 1, 0],
    ])
    expect(grads((a, b) => ops.clamp(a, -1, 1).mul(b), [-1, 0.5, 3], [2, 2, 2])[0]).toEqual([2, 2, 0])
  }))

test('stack, squeeze and unsqueeze', () =>
  scope(() => {
    const rows = [0, 10].map((from) => tensor([from, from + 1, from + 2], null, { requiresGrad: true }))
    expect(listOf(ops.stack(rows))).toEqual([0, 1, 2, 10, 11, 12])
    const columns = ops.stack(rows, -1)
    expect([columns.shape, listOf(columns)]).toEqual([
      [3, 2],
      [0, 10, 1, 11, 2, 12],
    ])
    columns
      .mul(tensor([1, 2]))
      .sum()
      .backward()
    expect(rows.map(({ grad }) => listOf(grad!))).toEqual([
      [1, 1, 1],
      [2, 2, 2],
    ])
    const x = zeros([1, 2, 1])
    expect([x.squeeze().shape, x.squeeze(-1).shape, x.unsqueeze(0).shape, x.unsqueeze(-1).shape]).toEqual([
      [2],
      [1, 2],
      [1, 1, 2, 1],
      [1, 2, 1, 1],
    ])
  }))

test('matmul has the leading dimensions of the operand that has more', () =>
  scope(() => {
    const [matrix, batch] = [ones([2, 3]), ones([1, 1, 3, 2])]
    expect([matrix.matmul(batch).shape, batch.matmul(matrix).shape]).toEqual([
      [1, 1, 2, 2],
      [1, 1, 3, 3],
    ])
  }))

test('softmax over any axis sums to 1 along it', () =>
  scope(() => {
    const x = randn([2, 3, 4], { dtype: 'f64' })
    for (const axis of [0, 1, 2, -3, -2, -1]) {
      const y = x.softmax(axis)
      const wanted = x.exp().div(x.exp().sum(axis, true))
      expect(y.shape).toEqual([2, 3, 4])
      expect(relativeError(values(y), values(wanted))).toBeLessThan(1e-14)
      expect(relativeError(values(ops.logSoftmax(x, axis)), values(wanted.log()))).toBeLessThan(1e-14)
    }
    expect(listOf(x.softmax())).toEqual(listOf(x.softmax(2)))
  }))

describe('errors leave nothing behind', () => {
  const x = randn([2, 3])
  const i32 = tensor([1, 2], [2], { dtype: 'i32' })
  const ones2 = ones([2])
  const nan = tensor([Number.NaN])
  const before = live()
  afterEach(() => expect(live()).toEqual(before))
  const wrong: [string, () => unknown, string, RegExp][] = [
    ['less of two shapes', () => ops.less(x, ones2), 'SHAPE', /^\[less\] shapes \[2, 3\] and \[2\] do not broadcast/],
    ['pow of integers', () => ops.pow(i32, 2), 'DTYPE', /^\[pow\] a must be f32 or f64, got i32/],
    ['a condition of another shape', () => ops.where(i32, x, 0), 'SHAPE', /^\[where\] shapes \[2\] and \[2, 3\]/],
    ['a condition that is no tensor', () => ops.where(true as never, x, 0), 'OPTION', /^\[where\] condition must be/],
    ['a NaN in a condition', () => ops.where(nan, x, 0).dataSync(), 'NON_FINITE', /NaN/],
    ['two dtypes', () => ops.where(x, x, i32 as never), 'DTYPE', /^\[where\] b must be f32 like a, got i32/],
    [
      'limits the wrong way round',
      () => ops.clamp(x, 1, 0),
      'OPTION',
      /^\[clamp\] min must be at most max, got 1 and 0/,
    ],
    ['two numbers', () => ops.sub(1, 2 as never), 'OPTION', /^\[sub\] b must be a Tensor, got 2/],
    ['half an integer first', () => ops.sub(0.5, i32), 'DTYPE', /^\[sub\] a must be an integer of 32 bits/],
    ['more than an integer holds', () => ops.less(i32, 2 ** 31), 'DTYPE', /^\[less\] b must be .*, got 2147483648$/],
    ['less than an integer holds', () => i32.add(-(2 ** 31) - 1), 'DTYPE', /^\[add\] b must be .*, got -2147483649$/],
    ['a limit that is NaN', () => ops.clamp(x, Number.NaN), 'OPTION', /^\[clamp\] min must be a number, got NaN/],
    ['squeeze of 2', () => x.squeeze(0), 'SHAPE', /^\[squeeze\] dimension 0 of x must be 1, got \[2, 3\]/],
    [
      'an axis that is not there',
      () => x.unsqueeze(3),
      'OPTION',
      /^\[unsqueeze\] axis must be an integer from -3 to 2, got 3/,
    ],
    [
      'stack of two shapes',
      () => ops.stack([x, ones2]),
      'SHAPE',
      /^\[stack\] tensors\[1\] must be \[2, 3\], got \[2\]/,
    ],
    [
      'softmax over axis 2 of 2',
      () => x.softmax(2),
      'OPTION',
      /^\[softmax\] axis must be an integer from -2 to 1, got 2/,
    ],
    ['stack of nothing', () => ops.stack([]), 'OPTION', /^\[stack\] tensors must not be empty/],
  ]
  test.each(wrong)('%s', (_what, call, code, message) => {
    expect(() => scope(call)).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }))
  })
})
