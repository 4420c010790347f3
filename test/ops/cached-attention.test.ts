import { expect, test } from 'vitest'
import {
  Attention,
  attention,
  CausalSelfAttention,
  full,
  noGrad,
  ops,
  randn,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { listOf, relativeError, values } from '../support/numbers.js'

const f64 = { dtype: 'f64' } as const
const i32 = (...numbers: number[]): Tensor => tensor(Int32Array.from(numbers))

test.each([
  [1, 1],
  [4, 4],
  [6, 2],
])('tokens that come piece by piece see what they see at once (%i heads, of keys %i)', (heads, kvHeads) =>
  scope(() => {
    const [N, width, kvWidth] = [300, heads * 5, kvHeads * 5]
    const [q, k, v] = [width, kvWidth, kvWidth].map((size) => randn([2, N, size], f64))
    const whole = attention(q, k, v, { heads, kvHeads })
    // Two sequences in slots 2 and 0; what other slots and later rows hold has no influence.
    const [keys, cached] = [0, 1].map(() => full([3, N + 2, kvWidth], Number.NaN, f64))
    const slot = i32(2, 0)
    let at = 0
    const parts = [1, 1, 7, 100, 1, 190].map((count) => {
      const [a, b, c] = [q, k, v].map((x) => x.slice(1, at, at + count))
      const position = i32(at, at)
      at += count
      return ops.cachedAttention(a, b, c, { heads, kvHeads, keys, values: cached, position, slot })
    })
    expect(at).toBe(N)
    expect(relativeError(values(ops.concat(parts, 1)), values(whole))).toBeLessThan(1e-13)
    expect(listOf(keys.slice(0, 1, 2)).every(Number.isNaN)).toBe(true)
    expect(listOf(keys.slice(0, 0, 1).slice(1, 0, N))).toEqual(listOf(k.slice(0, 1, 2)))
    expect(listOf(cached.slice(1, N, N + 2)).every(Number.isNaN)).toBe(true)
  }),
)

test('sequences of different lengths share a call', () =>
  scope(() => {
    const [keys, cached] = [0, 1].map(() => zeros([2, 8, 4], f64))
    const x = randn([2, 5, 4], f64)
    const one = (b: number, from: number, to: number) => x.slice(0, b, b + 1).slice(1, from, to)
    const place = (b: number, at: number) => ({ keys, values: cached, position: i32(at), slot: i32(b) })
    const attend = (part: Tensor, options: ReturnType<typeof place>) =>
      ops.cachedAttention(part, part, part, { heads: 2, scale: 0.3, ...options })
    attend(one(0, 0, 4), place(0, 0))
    attend(one(1, 0, 1), place(1, 0))
    const both = ops.concat([one(0, 4, 5), one(1, 1, 2)], 0)
    const y = ops.cachedAttention(both, both, both, { heads: 2, scale: 0.3, keys, values: cached, position: i32(4, 1) })
    const wanted = (part: Tensor) => attention(part, part, part, { heads: 2, scale: 0.3 })
    for (const [b, length] of [5, 2].entries())
      expect(
        relativeError(values(y.slice(0, b, b + 1)), values(wanted(one(b, 0, length)).slice(1, length - 1))),
      ).toBeLessThan(1e-14)
  }))

test.each([false, true])('the layer with a cache is the layer; rotary positions %s', (rotary) =>
  scope(() => {
    const attend = new Attention(24, { heads: 6, kvHeads: 2, bias: true, causal: true, rotary, dtype: 'f64' })
    const x = randn([3, 9, 24], f64)
    const cache = attend.cache(3, 9)
    const parts = noGrad(() =>
      [0, 4, 8].map((at) =>
        attend.forward(x.slice(1, at, Math.min(9, at + 4)), { cache: { ...cache, position: i32(at, at, at) } }),
      ),
    )
    expect(relativeError(values(ops.concat(parts, 1)), values(attend.forward(x)))).toBeLessThan(1e-14)
  }),
)

test('what cannot be is an error, and leaves the cache as it is', () =>
  scope(() => {
    const [keys, cached] = [0, 1].map(() => zeros([2, 4, 6]))
    const x = randn([2, 1, 6])
    const call =
      (options: object, q: Tensor = x) =>
      () => {
        const y = ops.cachedAttention(q, q, q, { heads: 2, keys, values: cached, position: i32(0, 0), ...options })
        return y.dataSync()
      }
    for (const [wrong, message] of [
      [call({ position: i32(0, 4) }), /position.* must be in .*, got 4/],
      [call({ position: i32(-1, 0) }), /position.* must be in .*, got -1/],
      [call({ slot: i32(0, 2) }), /slot must be in .*, got 2/],
      [call({ position: i32(0) }), /\[cachedAttention\] position must be \[2\], got \[1\]/],
      [call({ position: tensor([0, 0]) }), /position must be i32, got f32/],
      [call({ keys: zeros([2, 4, 5]) }), /keys must be \[2, 4, 6\], got \[2, 4, 5\]/],
      [call({ values: zeros([2, 5, 6]) }), /values must be \[2, 4, 6\], got \[2, 5, 6\]/],
      [call({}, randn([3, 1, 6])), /position must be \[3\]/],
      [call({ position: i32(0, 0, 0) }, randn([3, 1, 6])), /the cache has 2 slots, too few for 3 sequences/],
      [call({}, randn([2, 5, 6])), /the cache has 4 rows per slot, too few for 5 tokens/],
      [call({ heads: 4 }), /the width 6 must be a multiple of 4 heads/],
      [call({ kvHead: 1 }), /unknown option "kvHead"; did you mean 'kvHeads'/],
    ] as const)
      expect(wrong).toThrow(message)
    for (const needs of [0, 1, 2]) {
      const [q, k, v] = [0, 1, 2].map((i) => randn([2, 1, 6], { requiresGrad: i === needs }))
      const place = { keys, values: cached, position: i32(0, 0) }
      expect(() => ops.cachedAttention(q, k, v, { heads: 2, ...place })).toThrow(
        /it has no gradient: call it within noGrad/,
      )
    }
    // A kernel on a GPU skips the sequence whose place is wrong, and not the others.
    if (keys.device === 'cpu') expect(listOf(keys).every((value) => value === 0)).toBe(true)
    const causal = new CausalSelfAttention(6, { heads: 2 })
    const cache = { ...causal.cache(2, 4), position: i32(0, 0) }
    expect(() => causal.forward(x, { cache, mask: zeros([2, 1]) })).toThrow(/mask is not for a cache/)
    expect(() => new Attention(6, { heads: 2 }).forward(x, { cache })).toThrow(/a cache is for causal attention/)
    expect(() => causal.cache(0, 4)).toThrow(/slots must be an integer of at least 1, got 0/)
  }))
