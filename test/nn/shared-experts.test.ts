import { describe, expect, test } from 'vitest'
import { MoE, manualSeed, ops, randn, scope, tensor } from '../../lib/index.js'
import { relativeError, values } from '../support/numbers.js'

// Experts that every token visits. Their gradients are tested in gradcheck.test.ts.

const [D, H, E] = [6, 5, 3]
const options = { dim: D, numExperts: E, expertHiddenDim: H, dtype: 'f64', thresholdTrain: 0 } as const

describe.each([false, true])('gate %s', (sharedExpertGate) => {
  const make = (more: object = {}) => new MoE({ ...options, sharedExperts: 2, sharedExpertGate, ...more })

  test('the output is that of the routed experts and of one of the joint width', () =>
    scope(() => {
      const moe = make()
      const routed = new MoE(options)
      routed.loadStateDict(moe.stateDict(), { strict: false })
      const x = randn([2, 7, D], { dtype: 'f64' })
      const dense = ops.expertFfn(x, null, moe.sharedExperts!.experts)
      const gate = moe.sharedExperts!.gate
      const shared = gate ? dense.mul(gate.forward(x).sigmoid()) : dense
      const expected = routed.forward(x).outputs.add(shared)
      expect(relativeError(values(moe.forward(x).outputs), values(expected))).toBeLessThan(1e-14)
      expect(moe.sharedExperts!.experts.w1.shape).toEqual([1, 2 * 2 * H, D])
    }))

  test('padding outputs zeros and reaches nothing, even NaN', () =>
    scope(() => {
      const moe = make()
      const x = randn([2, 7, D], { dtype: 'f64' })
      const data = Float64Array.from(values(x))
      const mask = tensor([
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
      ])
      const at = (t: number) => t * D
      for (const t of [3, 4, 5, 6, 13]) data.fill(Number.NaN, at(t), at(t + 1))
      const run = (input: typeof data) => {
        moe.zeroGrad()
        const leaf = tensor(Float64Array.from(input), [2, 7, D])
        const { outputs } = moe.forward(leaf, { mask })
        outputs.square().sum().backward()
        return [outputs, moe.sharedExperts!.experts.w1.grad!].map((t) => Array.from(values(t)))
      }
      const [y, dw] = run(data)
      for (const t of [3, 4, 5, 6, 13]) expect([...y.slice(at(t), at(t + 1))]).toEqual(Array(D).fill(0))
      const [clean, dwClean] = run(Float64Array.from(values(x)))
      expect([y, dw]).toEqual([clean, dwClean])
    }))

  test('a state dict has their own names', () => {
    const moe = make({ expertBiases: false })
    const names = Object.keys(moe.stateDict()).filter((name) => name.startsWith('shared_experts.'))
    const own = ['net.0.weight', 'net.2.weight', ...(sharedExpertGate ? ['gate.weight'] : [])]
    expect(names).toEqual(own.map((name) => `shared_experts.${name}`))
    const copy = make({ expertBiases: false })
    copy.loadStateDict(moe.stateDict())
    const x = randn([1, 5, D], { dtype: 'f64' })
    expect(values(copy.eval().forward(x).outputs)).toEqual(values(moe.eval().forward(x).outputs))
  })
})

test('they sample nothing', () =>
  scope(() => {
    const mask = tensor([[1, 1, 1, 0]])
    const next = (more: object) => {
      const moe = new MoE({ dim: D, ...more })
      manualSeed(4)
      moe.forward(randn([1, 4, D]), { mask })
      return values(randn([5]))
    }
    expect(next({ sharedExperts: 1 })).toEqual(next({}))
  }))

test.each([
  [{ sharedExperts: -1 }, '[MoE] sharedExperts must be an integer of at least 0, got -1'],
  [{ sharedExpertGate: true }, '[MoE] sharedExpertGate needs sharedExperts, got 0'],
])('%o is an error', (more, message) => {
  expect(() => new MoE({ dim: D, ...more })).toThrow(expect.objectContaining({ code: 'OPTION', message }))
})
