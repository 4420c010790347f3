import { describe, expect, test } from 'vitest'
import {
  AdamW,
  CausalSelfAttention,
  type ComputeDType,
  devices,
  FeedForward,
  Linear,
  MoE,
  manualSeed,
  memory,
  noGrad,
  ops,
  randn,
  SGD,
  SparseMoEBlock,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { expectNoLeak } from '../support/baseline.js'
import { Draw, relativeError, runSeed, values } from '../support/numbers.js'

/** Relative rounding errors of the low-precision types. */
const rounding = { bf16: 2 ** -9, f16: 2 ** -12 } as const
type Narrow = keyof typeof rounding
const lowPrecision = Object.keys(rounding) as Narrow[]
/** That of a sum of two bf16 comes to this, with the product that is left out. */
const layerRounding = { ...rounding, bf16x3: 2 ** -17 } as const

const draw = new Draw(runSeed())
const normal = (shape: readonly number[], dtype: 'f32' | 'f64' = 'f32', scale = 1): Tensor => {
  const size = shape.reduce((a, b) => a * b, 1)
  return tensor(
    draw.array(size, () => Math.fround(scale * draw.normal())),
    shape,
    { dtype },
  )
}
const leaf = (x: Tensor): Tensor => {
  const copy = x.clone()
  copy.requiresGrad = true
  return copy
}
const rounded = (x: Tensor, dtype: Narrow): Tensor => x.to('f32').to(dtype).to('f64')

/** Odd sizes, one row, more than a block of k, nothing to add up. */
const linears: [rows: number, inFeatures: number, outFeatures: number][] = [
  [1, 1, 1],
  [3, 5, 7],
  [1, 33, 17],
  [2, 64, 32],
  [5, 31, 96],
  [16, 40, 33],
  [37, 515, 45],
  [130, 1030, 70],
  [4, 0, 3],
]

describe.each(lowPrecision)('GEMMs of %s operands', (computeDtype) => {
  test.each(linears)('linear of %d rows, %d → %d, equals float64 on rounded operands', (T, I, O) =>
    scope(() => {
      const [x, w, b, dy] = [normal([T, I]), normal([O, I]), normal([O]), normal([T, O])]
      const [xl, wl, bl] = [x, w, b].map(leaf)
      const y = ops.linear(xl, wl, bl, { computeDtype })
      y.backward(dy)
      const [xr, wr, dyr] = [x, w, dy].map((t) => rounded(t, computeDtype))
      const expected = {
        y: xr.matmul(wr.transpose()).add(b.to('f64')),
        dx: dyr.matmul(wr),
        dw: dyr.transpose().matmul(xr),
        db: dy.to('f64').sum(0),
      }
      for (const [name, got, want] of [
        ['y', y, expected.y],
        ['dx', xl.grad!, expected.dx],
        ['dw', wl.grad!, expected.dw],
        ['db', bl.grad!, expected.db],
      ] as const)
        expect(relativeError(values(got), values(want)), name).toBeLessThan(1e-6)
    }),
  )

  test('groupedGemm equals linear of each group', () =>
    scope(() => {
      const [sizes, I, O] = [[3, 0, 70, 1, 0], 33, 20]
      const R = sizes.reduce((a, b) => a + b)
      const [x, w, dy] = [normal([R, I]), normal([sizes.length, O, I]), normal([R, O])]
      const [xl, wl] = [x, w].map(leaf)
      const y = ops.groupedGemm(xl, wl, tensor(Int32Array.from(sizes)), { computeDtype })
      y.backward(dy)
      let row = 0
      for (const [g, size] of sizes.entries()) {
        const part = (t: Tensor) => leaf(ops.slice(t, 0, row, row + size))
        const [xg, wg] = [part(x), leaf(ops.slice(w, 0, g, g + 1).reshape([O, I]))]
        const yg = ops.linear(xg, wg, null, { computeDtype })
        yg.backward(part(dy))
        for (const [got, want] of [
          [part(y), yg],
          [part(xl.grad!), xg.grad!],
          [ops.slice(wl.grad!, 0, g, g + 1), wg.grad!],
        ])
          expect(relativeError(values(got), values(want))).toBeLessThan(1e-6)
        row += size
      }
    }))

  test('infinities and NaN pass, what is too large for the type becomes infinite', () =>
    scope(() => {
      const w = tensor([1], [1, 1])
      const y = (x: number) => ops.linear(tensor([x], [1, 1]), w, null, { computeDtype }).item()
      expect(y(Number.POSITIVE_INFINITY)).toBe(Number.POSITIVE_INFINITY)
      expect(y(Number.NaN)).toBeNaN()
      expect(y(-1e38)).toBe(computeDtype === 'bf16' ? -9.969209968386869e37 : Number.NEGATIVE_INFINITY)
      expect(y(-0)).toBeCloseTo(0)
      if (computeDtype !== 'f16') return
      expect([65504, 65519, 65520, 65535, -65520].map(y)).toEqual([65504, 65504, Infinity, Infinity, -Infinity])
    }))

  // A GPU keeps a rounded copy of a weight, which the optimizer writes beside it.
  test.each([6, 7, 9])('a step of an optimizer counts in the next product, with %i columns', (columns) =>
    scope(() => {
      const layer = new Linear(columns, 5, { computeDtype, bias: false })
      const optimizer = new AdamW(layer.parameters(), { lr: 0.5 })
      const x = randn([3, columns])
      layer.forward(x).square().sum().backward()
      optimizer.step()
      const after = layer.forward(x)
      const fresh = new Linear(columns, 5, { computeDtype, bias: false })
      fresh.weight.copyFrom(layer.weight.dataSync())
      expect(values(after)).toEqual(values(fresh.forward(x)))
    }),
  )
})

/** Whether bf16x3 is not float32 here. */
const hasSums = () => zeros([1]).device === 'cpu' && devices()[0].variant === 'amx'

describe('GEMMs of bf16x3', () => {
  test.each(linears)('linear of %d rows, %d → %d, is near float64', (T, I, O) =>
    scope(() => {
      const [x, w, dy] = [normal([T, I]), normal([O, I]), normal([T, O])]
      const results = (dtype: 'f32' | 'f64', computeDtype?: ComputeDType) => {
        const [xl, wl] = [x, w].map((t) => leaf(t.to(dtype)))
        const y = ops.linear(xl, wl, null, { computeDtype })
        y.backward(dy.to(dtype))
        return [y, xl.grad!, wl.grad!].map(values)
      }
      const [exact, plain, sums] = [results('f64'), results('f32'), results('f32', 'bf16x3')]
      // Both parts of an operand are rounded, and the product of the second ones is left out.
      for (const [i, want] of exact.entries()) expect(relativeError(sums[i], want)).toBeLessThan(3 * 2 ** -18)
      if (!hasSums()) expect(sums).toEqual(plain)
      else if (T * I * O > 1000) expect(sums).not.toEqual(plain)
    }),
  )
})

describe.each(Object.keys(layerRounding) as (keyof typeof layerRounding)[])('layers of %s', (computeDtype) => {
  test.each([
    [1, 2, 8, 4, 2],
    [2, 40, 24, 4, 2],
    [1, 70, 130, 2, 2],
  ])('experts: %d × %d tokens, width %d, %d experts, top-%d', (B, N, D, E, K) =>
    scope(() => {
      const bound = 12 * layerRounding[computeDtype]
      const build = (dtype: 'f32' | 'f64', compute?: ComputeDType) =>
        new MoE({ dtype, computeDtype: compute, dim: D, numExperts: E, gatingTopN: K, capacityFactorTrain: 2 })
      const [exact, plain, coarse] = [build('f64'), build('f32'), build('f32', computeDtype)]
      const state = Object.entries(plain.stateDict())
      exact.loadStateDict(Object.fromEntries(state.map(([name, t]) => [name, t.to('f64')])))
      coarse.loadStateDict(Object.fromEntries(state))
      const input = normal([B, N, D])
      const dy = normal([B, N, D])
      const uniforms = tensor(
        draw.array(K * B * N, () => Math.fround(draw.next())),
        [K, B, N],
        { dtype: 'f32' },
      )
      const run = (moe: MoE, dtype: 'f32' | 'f64') => {
        const x = leaf(input.to(dtype))
        const { outputs, routing } = moe.forward(x, { random: { uniforms: uniforms.to(dtype) } })
        outputs.backward(dy.to(dtype))
        const { experts } = moe
        const grads = {
          dx: x.grad!,
          ...Object.fromEntries([...experts.namedParameters()].map(([n, p]) => [n, p.grad!])),
        }
        return { outputs, routing, grads: grads as Record<string, Tensor> }
      }
      const [want, got] = [run(exact, 'f64'), run(coarse, 'f32')]
      expect(values(got.routing.expertIndex)).toEqual(values(want.routing.expertIndex))
      const error = relativeError(values(got.outputs), values(want.outputs))
      expect(error).toBeLessThan(bound)
      if (computeDtype !== 'bf16x3' || hasSums()) expect(error).toBeGreaterThan(layerRounding[computeDtype] / 50) // it does round
      for (const [name, grad] of Object.entries(want.grads))
        expect(relativeError(values(got.grads[name]), values(grad)), name).toBeLessThan(2 * bound)
    }),
  )
})

test.each(lowPrecision)('experts save half of the bytes for the backward in %s', (computeDtype) => {
  const saved = (compute?: Narrow): number =>
    scope(() => {
      const moe = new MoE({ dim: 64, numExperts: 2, gatingTopN: 2, expertHiddenMult: 12, computeDtype: compute })
      const x = normal([1, 64, 64])
      noGrad(() => moe.forward(x).outputs.dataSync()) // copies of weights are there
      const before = memory().bytes
      const result = noGrad(() => moe.forward(x))
      const unsaved = memory().bytes - before
      result.dispose()
      const recorded = moe.forward(x)
      recorded.outputs.dataSync()
      return memory().bytes - before - unsaved
    })
  const [whole, half] = [saved(), saved(computeDtype)]
  expect(half / whole).toBeGreaterThan(0.45)
  expect(half / whole).toBeLessThan(0.65) // router and plan are as before
})

describe.each(lowPrecision)('copies of weights in %s', (computeDtype) => {
  test('serve until the weight changes, and go with it', () =>
    expectNoLeak(() => {
      manualSeed(2)
      const build = () => new MoE({ dim: 24, numExperts: 4, computeDtype })
      const [linear, moe, same, other] = [new Linear(24, 40, { computeDtype }), build(), build(), build()]
      const expectFresh = () =>
        scope(() => {
          const x = normal([2, 16, 24])
          const { weight, bias } = linear
          const plain = values(ops.linear(x, weight.clone(), bias, { computeDtype })) // a clone is no parameter
          for (let i = 0; i < 3; i++) expect(values(linear.forward(x))).toEqual(plain)
          same.loadStateDict(moe.stateDict())
          const random = { uniforms: zeros([2, 2, 16]) }
          const outputs = () => values(moe.forward(x, { random }).outputs)
          expect(outputs()).toEqual(values(same.forward(x, { random }).outputs))
          expect(outputs()).toEqual(outputs())
          return outputs()
        })
      const first = expectFresh()
      const optimizer = new SGD([...linear.parameters(), ...moe.parameters()], { lr: 0.1 })
      scope(() => {
        const x = normal([2, 16, 24])
        linear.forward(x).square().sum().backward()
        moe.forward(x).outputs.square().sum().backward()
        optimizer.step()
      })
      expect(expectFresh()).not.toEqual(first)
      scope(() => moe.loadStateDict(other.stateDict()))
      expectFresh()
      for (const entry of [linear, moe, same, other, optimizer]) entry.dispose()
    }))

  test('of forward and backward are two, although a square weight has one shape', () =>
    scope(() => {
      const layer = new Linear(32, 32, { computeDtype })
      const [x, dy] = [normal([40, 32]), normal([40, 32])]
      const run = (weight: Tensor) => {
        const input = leaf(x)
        const y = ops.linear(input, weight, layer.bias, { computeDtype })
        y.backward(dy)
        return [y, input.grad!].map(values)
      }
      const plain = run(layer.weight.clone())
      for (let i = 0; i < 3; i++) expect(run(layer.weight)).toEqual(plain)
    }))

  test('are not kept for tensors that are no parameters', () =>
    scope(() => {
      const [x, w] = [normal([4, 24]), normal([40, 24])]
      expectNoLeak(() => ops.linear(x, w, null, { computeDtype }).dispose())
    }))
})

test('layers pass their computeDtype on', () =>
  scope(() => {
    const layer = { computeDtype: 'bf16' } as const
    expect(new Linear(2, 3).computeDtype).toBe('f32')
    expect(new Linear(2, 3, { dtype: 'f64' }).computeDtype).toBe('f64')
    expect(new CausalSelfAttention(8, layer).out.computeDtype).toBe('bf16')
    expect(new FeedForward(8, layer).expert.computeDtype).toBe('bf16')
    const block = new SparseMoEBlock(new MoE({ dim: 8, numExperts: 2, ...layer }), { addFfBefore: true })
    expect([block.ffBefore!.expert.computeDtype, block.ffAfter!.expert.computeDtype]).toEqual(['bf16', 'bf16'])
    manualSeed(1)
    const x = normal([3, 8])
    const linear = new Linear(8, 8, layer)
    expect(values(linear.forward(x))).toEqual(values(ops.linear(x, linear.weight, linear.bias, layer)))
  }))
