import { afterEach, describe, expect, test } from 'vitest'
import {
  Attention,
  attention,
  CausalSelfAttention,
  full,
  gelu,
  Linear,
  MoE,
  manualSeed,
  ones,
  ops,
  randn,
  Sequential,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { live } from '../support/baseline.js'
import { listOf, relativeError, values } from '../support/numbers.js'

// test/python/answers.test.ts compares values and gradients with those of PyTorch and transformers.

test('without new options Attention is CausalSelfAttention, with its names', () =>
  scope(() => {
    manualSeed(3)
    using causal = new CausalSelfAttention(16, { heads: 4, bias: true })
    manualSeed(3)
    using other = new Attention(16, { heads: 4, bias: true, causal: true })
    const names = ['query', 'key', 'value', 'out'].flatMap((name) => [`${name}.weight`, `${name}.bias`])
    expect([Object.keys(causal.stateDict()), Object.keys(other.stateDict())]).toEqual([names, names])
    const x = randn([2, 70, 16])
    expect(listOf(other.forward(x))).toEqual(listOf(causal.forward(x)))
  }))

test('padding has no influence, not even a NaN, and gets no gradient', () =>
  scope(() => {
    const mask = tensor([1, 1, 0, 0, 0, 1, 1, 1], [2, 4])
    const [q, k, v] = [8, 4, 4].map((width) => randn([2, 4, width], { dtype: 'f64' }))
    const run = (fill: number, causal: boolean) => {
      const padded = (x: Tensor) => {
        const leaf = ops.where(mask.reshape([2, 4, 1]), x, fill).detach()
        leaf.requiresGrad = true
        return leaf
      }
      const leaves = [q.clone(), padded(k), padded(v)]
      leaves[0].requiresGrad = true
      const y = attention(leaves[0], leaves[1], leaves[2], { heads: 4, kvHeads: 2, causal, mask })
      y.square().sum().backward()
      return [y, ...leaves.map(({ grad }) => grad!)].map(listOf)
    }
    for (const causal of [true, false]) {
      const [y, dq, dk, dv] = run(Number.NaN, causal)
      expect([y, dq, dk, dv]).toEqual(run(7, causal))
      expect([dq, dk, dv].flat().every(Number.isFinite)).toBe(true)
      for (const d of [dk, dv]) expect(d.slice(8, 20).map((x) => x + 0)).toEqual(Array(12).fill(0))
      // token 0 of the second sequence is padding: causally, it sees nothing
      expect(y.slice(32, 40).every((value) => value === 0)).toBe(causal)
    }
  }))

describe('where the triangle of causal attention begins', () => {
  const run = (Nq: number, Nk: number, causal: boolean | 'first' | 'last', fill?: number) => {
    manualSeed(2)
    const leaf = (x: Tensor) => Object.assign(x.detach(), { requiresGrad: true })
    const keys = () => {
      const x = randn([2, Nk, 8], { dtype: 'f64' })
      return fill === undefined ? x : ops.concat([x.slice(1, 0, Nq), full([2, Nk - Nq, 8], fill, { dtype: 'f64' })], 1)
    }
    const leaves = [leaf(randn([2, Nq, 8], { dtype: 'f64' })), leaf(keys()), leaf(keys())]
    const y = attention(leaves[0], leaves[1], leaves[2], { heads: 2, causal })
    y.square().sum().backward()
    return [y, ...leaves.map(({ grad }) => grad!)].map(listOf)
  }

  test('as many queries as keys: both are the same', () =>
    scope(() => {
      for (const N of [1, 5, 90]) {
        expect(run(N, N, 'first')).toEqual(run(N, N, true))
        expect(run(N, N, 'last')).toEqual(run(N, N, true))
      }
    }))

  test("'last' ends at the last key, 'first' begins at the first, as PyTorch's is_causal", () =>
    scope(() => {
      const [q, k] = [zeros([1, 1, 1]), zeros([1, 3, 1])]
      const v = tensor([1, 2, 6], [1, 3, 1])
      const y = (causal: boolean | 'first' | 'last') => listOf(attention(q, k, v, { heads: 1, causal }))
      expect([y(true), y('last'), y('first'), y(false)]).toEqual([[3], [3], [1], [3]])
    }))

  test("with 'first' keys that no query sees have no influence, not even a NaN, and get no gradient", () =>
    scope(() => {
      for (const [Nq, Nk] of [
        [5, 9],
        [40, 200],
        [70, 300],
      ]) {
        const [y, dq, dk, dv] = run(Nq, Nk, 'first', Number.NaN)
        expect([y, dq, dk, dv]).toEqual(run(Nq, Nk, 'first', 7))
        expect(y.every(Number.isFinite)).toBe(true)
        const rows = (list: number[]) => [0, 1].flatMap((b) => list.slice((b * Nk + Nq) * 8, (b + 1) * Nk * 8))
        for (const d of [dk, dv]) expect(rows(d).every((x) => x === 0)).toBe(true)
      }
    }))

  test("with 'first' there may be more queries than keys", () =>
    scope(() => {
      const [y] = run(9, 4, 'first')
      const [all] = run(9, 4, false)
      expect(relativeError(y.slice(24, 72), all.slice(24, 72))).toBeLessThan(1e-14) // from query 3 on they see all
      expect(y.slice(0, 24)).not.toEqual(all.slice(0, 24))
      expect(() => run(9, 4, 'last')).toThrow(/at least as many keys as queries, got 4 and 9; see causal 'first'/)
      expect(() => run(2, 4, 'middle' as never)).toThrow(
        /causal must be true, false or one of last, first, got "middle"/,
      )
    }))
})

test('grouped queries are the same as repeated keys', () =>
  scope(() => {
    const [q, k, v] = [6, 3, 3].map((heads) => randn([2, 40, heads * 4], { dtype: 'f64' }))
    const repeated = (x: Tensor) =>
      x
        .reshape([2, 40, 3, 1, 4])
        .add(ones([2, 1], { dtype: 'f64' }).sub(1))
        .reshape([2, 40, 24])
    const grouped = attention(q, k, v, { heads: 6, kvHeads: 3 })
    expect(relativeError(values(grouped), values(attention(q, repeated(k), repeated(v), { heads: 6 })))).toBeLessThan(
      1e-14,
    )
  }))

test('with rotary positions, scores depend on distances alone', () =>
  scope(() => {
    const [q, k] = [0, 1].map(() => randn([1, 1, 8], { dtype: 'f64' }).add(ones([9, 1], { dtype: 'f64' }).sub(1)))
    const [a, b] = [q, k].map((x) => ops.rotary(x, { heads: 2 }))
    const scores = a
      .slice(2, 0, 4)
      .matmul(b.slice(2, 0, 4).transpose())
      .toArray<number[][][]>()[0]
    for (let i = 1; i < 9; i++) for (let j = 1; j < 9; j++) expect(scores[i][j]).toBeCloseTo(scores[i - 1][j - 1], 12)
    expect(listOf(a).slice(0, 8)).toEqual(listOf(q).slice(0, 8))
  }))

test('sequences that begin at positions of their own are rotated as parts of longer ones', () =>
  scope(() => {
    const x = randn([3, 12, 8], { dtype: 'f64' })
    const first = [0, 7, 3]
    const whole = ops.rotary(x, { heads: 2, base: 50 })
    const part = (of: Tensor<'f64'>) =>
      ops.concat(
        first.map((n, b) => of.slice(0, b, b + 1).slice(1, n, n + 5)),
        0,
      )
    const turned = ops.rotary(part(x), { heads: 2, base: 50, position: tensor(Int32Array.from(first)) })
    expect(listOf(turned)).toEqual(listOf(part(whole)))
  }))

describe('Sequential', () => {
  test('has the names of torch.nn.Sequential, nested too, and applies each layer to the last result', () =>
    scope(() => {
      using inner = new Sequential(new Linear(4, 4), gelu)
      using model = new Sequential(new Linear(3, 4, { bias: false }), (x) => x.mul(2), inner)
      expect(Object.keys(model.stateDict())).toEqual(['0.weight', '2.0.weight', '2.0.bias'])
      expect([...model.namedModules()].map(([name]) => name)).toEqual(['', '0', '2', '2.0'])
      const x = randn([5, 3])
      const [first] = model.layers as [Linear]
      expect(listOf(model.forward(x))).toEqual(listOf(inner.forward(first.forward(x).mul(2))))
      model.eval()
      expect([inner.training, first.training]).toEqual([false, false])
      let calls = 0
      inner.registerForwardHook(() => void calls++)
      model.forward(x).sum().backward()
      expect([calls, first.weight.grad?.shape]).toEqual([1, [4, 3]])
      using empty = new Sequential()
      expect(listOf(empty.forward(x))).toEqual(listOf(x))
    }))
})

describe('errors leave nothing behind', () => {
  const x = randn([2, 3, 8])
  const before = live()
  afterEach(() => expect(live()).toEqual(before))
  const wrong: [string, () => unknown, string, RegExp][] = [
    [
      'groups that do not divide',
      () => attention(x, x, x, { heads: 4, kvHeads: 3 }),
      'OPTION',
      /^\[attention\] heads must be a multiple of kvHeads, got 4 and 3/,
    ],
    [
      'keys of every head',
      () => attention(x, x, x, { heads: 4, kvHeads: 2 }),
      'SHAPE',
      /^\[attention\] k must be \[2, 3, 4\], got \[2, 3, 8\]/,
    ],
    [
      'a mask of another shape',
      () => attention(x, x, x, { heads: 4, mask: ones([2, 4]) }),
      'SHAPE',
      /^\[attention\] mask must be \[2, 3\], got \[2, 4\]/,
    ],
    [
      'more heads of keys',
      () => new Attention(8, { heads: 2, kvHeads: 4 }),
      'OPTION',
      /^\[Attention\] kvHeads must be at most heads = 2, got 4/,
    ],
    [
      'odd heads',
      () => new Attention(6, { heads: 2, rotary: true }),
      'OPTION',
      /^\[Attention\] dim must be a multiple of 2 · heads for rotary positions, got 6 and 2/,
    ],
    [
      'a base without rotary',
      () => new Attention(8, { rotaryBase: 10 }),
      'OPTION',
      /^\[Attention\] rotaryBase needs rotary, got false/,
    ],
    [
      'a causal option',
      () => new CausalSelfAttention(8, { causal: false } as never),
      'OPTION',
      /^\[CausalSelfAttention\] unknown option "causal"/,
    ],
    [
      'rotary of odd heads',
      () => ops.rotary(x, { heads: 8 }),
      'SHAPE',
      /^\[rotary\] the width 8 must be a multiple of 16/,
    ],
    [
      'positions of another number of sequences',
      () => ops.rotary(x, { heads: 2, position: tensor(Int32Array.of(1, 2, 3)) }),
      'SHAPE',
      /^\[rotary\] position must/,
    ],
    [
      'positions that are no integers',
      () => ops.rotary(x, { heads: 2, position: ones([2]) }),
      'DTYPE',
      /^\[rotary\] position must/,
    ],
    ['a base of 0', () => ops.rotary(x, { heads: 2, base: 0 }), 'OPTION', /^\[rotary\] base must be above 0, got 0/],
    [
      'a layer that is a number',
      () => new Sequential(3 as never),
      'OPTION',
      /^\[Sequential\] layer 0 must be a module with forward, or a function, got 3/,
    ],
    [
      'a layer with more results',
      () => {
        using moe = new MoE({ dim: 8, numExperts: 2 })
        return new Sequential(moe as never).forward(x)
      },
      'OPTION',
      /^\[Sequential.forward\] layer 0 must return a Tensor, got \[Tensor, /,
    ],
  ]
  test.each(wrong)('%s', (_what, call, code, message) => {
    expect(() => scope(call)).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }))
  })
})
