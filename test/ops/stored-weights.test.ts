import { describe, expect, test } from 'vitest'
import { MoeError, ops, randn, scope, type Tensor, tensor } from '../../lib/index.js'
import { relativeError, values } from '../support/numbers.js'

const [B, N, D, E, H] = [2, 9, 40, 3, 24]
const gates = randn([E, D])
const sizes = tensor(Int32Array.of(4, 0, 14))

type Product = (x: Tensor, weights: Tensor[], options: ops.LinearOptions) => Tensor
const ffn =
  (routed: boolean): Product =>
  (x, [w1, w2], options) =>
    ops.expertFfn(
      x,
      routed ? ops.route(x, gates, { secondPolicy: 'all' }) : null,
      { w1, b1: null, multBias: null, w2, b2: null },
      options,
    )
const ofExperts = [
  [E, 2 * H, D],
  [E, D, H],
]

const products: [name: string, x: number[], weights: number[][], run: Product][] = [
  ['linear of one row', [1, D], [[33, D]], (x, [w], options) => ops.linear(x, w, null, options)],
  ['linear', [B, N, D], [[33, D]], (x, [w], options) => ops.linear(x, w, null, options)],
  ['groupedGemm', [B * N, D], [[3, 21, D]], (x, [w], options) => ops.groupedGemm(x, w, sizes, options)],
  ['expertFfn of given rows', [E, N, D], ofExperts, ffn(false)],
  ['expertFfn of a routing', [B, N, D], ofExperts, ffn(true)],
]

describe.each(['bf16', 'f16', 'int8'] as const)('weights stored in %s', (stored) => {
  describe.each(products)('%s', (_, shape, weights, run) => {
    const make = () => [randn(shape), ...weights.map((one) => randn(one).mul(0.2).to(stored))] as const

    test.each(['f32', 'bf16', 'f16', 'bf16x3'] as const)('has the values and dx of the same weights in f32: %s', (of) =>
      scope(() => {
        const [x, ...compact] = make()
        const outcome = (given: Tensor[]) => {
          const leaf = x.clone()
          leaf.requiresGrad = true
          const y = run(leaf, given, { computeDtype: of })
          y.square().sum().backward()
          return [y, leaf.grad!]
        }
        const wide = outcome(compact.map((w) => w.to('f32')))
        for (const [i, got] of outcome(compact).entries())
          expect(relativeError(values(got), values(wide[i]))).toBeLessThan(of === 'f32' ? 1e-6 : 1e-4)
      }),
    )

    test('only beside an x in f32, and never as x', () =>
      scope(() => {
        const [x, ...compact] = make()
        const refused = (x: Tensor) => expect(() => run(x, compact, {})).toThrow(MoeError)
        refused(x.to('f64'))
        refused(x.to(stored))
      }))
  })

  test('no gradient of their own', () =>
    scope(() => {
      const w = randn([4, 3]).to(stored)
      expect(() => {
        w.requiresGrad = true
      }).toThrow(/only f32 and f64 tensors have gradients/)
    }))

  test('other ops say what to convert to', () =>
    scope(() => expect(() => randn([4, 3]).to(stored).relu()).toThrow(/convert it with \.to\('f32'\)/)))
})

test('an x in another type than the weight', () =>
  scope(() => {
    const x = randn([2, 3])
    expect(() => ops.linear(x, randn([4, 3]).to('f64'))).toThrow(
      /weight must be f32 or bf16 or f16 or int8 with x f32, got f64/,
    )
    expect(() => ops.linear(x.to('f64'), randn([4, 3]).to('f16'))).toThrow(/weight must be f64 with x f64, got f16/)
    expect(() => ops.linear(x, randn([4, 4]).to('f16'))).toThrow(MoeError)
    const sizes = tensor(Int32Array.of(2))
    expect(() => ops.groupedGemm(x, randn([1, 4, 4]).to('f16'), sizes)).toThrow(/weight must be \[G, O, 3\]/)
    const weights = { w1: randn([1, 8, 4]).to('f16'), b1: null, multBias: null, w2: randn([1, 3, 4]), b2: null }
    expect(() => ops.expertFfn(x, null, weights)).toThrow(/\[expertFfn\] w1 must be \[1, 8, 3\], got \[1, 8, 4\]/)
  }))
