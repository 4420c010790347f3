import { describe, expect, test } from 'vitest'
import { FeedForward, MoE, ops, randn, SparseMoEBlock, scope, zeros } from '../lib/index.js'
import { activations, isGated } from '../lib/ops/activation.js'
import { relativeError, values } from './support/numbers.js'

// The option `activation`. Its values are tested against plain loops in test/native, its gradients in gradcheck.test.ts.

const [E, D, H] = [3, 6, 70]

const cases: ops.ActivationOptions[] = [
  ...activations.map((activation) => ({ activation })),
  { activation: 'geglu', geluApproximate: 'tanh' },
  { activation: 'gelu', geluApproximate: 'tanh' },
]

describe.each(cases)('%o', (options) => {
  const gated = isGated(options.activation!)

  test('experts have the names of the reference, gated ones mult_bias too', () => {
    const moe = new MoE({ dim: D, numExperts: E, ...options })
    const names = Object.keys(moe.stateDict()).filter((name) => name.startsWith('experts.experts.1.'))
    const entries = ['net.0.weight', 'net.0.bias', ...(gated ? ['net.1.mult_bias'] : []), 'net.2.weight', 'net.2.bias']
    expect(names).toEqual(entries.map((name) => `experts.experts.1.${name}`))
    const copy = new MoE({ dim: D, numExperts: E, ...options })
    copy.loadStateDict(moe.stateDict())
    const x = randn([1, 4, D])
    expect(values(copy.eval().forward(x).outputs)).toEqual(values(moe.eval().forward(x).outputs))
    const { expert } = new FeedForward(D, options)
    expect([expert.w1.shape, expert.multBias?.shape]).toEqual([[1, gated ? 32 : 16, D], gated ? [1, 16] : undefined])
  })

  test.each(['bf16', 'f16'] as const)('operands of %s change little', (computeDtype) =>
    scope(() => {
      const moe = new MoE({ dim: D, numExperts: E, thresholdTrain: 0, computeDtype, ...options })
      const exact = new MoE({ dim: D, numExperts: E, thresholdTrain: 0, ...options })
      exact.loadStateDict(moe.stateDict())
      const x = randn([2, 16, D])
      const [got, expected] = [moe, exact].map((layer) => values(layer.forward(x).outputs))
      expect(relativeError(got, expected)).toBeLessThan(1e-2)
      expect(got).not.toEqual(expected)
    }),
  )
})

test('the feed-forwards of a block have the activation of its experts', () => {
  const block = new SparseMoEBlock(new MoE({ dim: D, numExperts: E, activation: 'relu2' }), { addFfBefore: true })
  expect([block.ffBefore, block.ffAfter].map((ff) => ff?.expert.activation)).toEqual(['relu2', 'relu2'])
  expect(Object.keys(block.stateDict()).filter((name) => name.includes('mult_bias'))).toEqual([])
})

const weights = (gated: boolean) => ({
  w1: zeros([E, gated ? 2 * H : H, D]),
  b1: zeros([E, gated ? 2 * H : H]),
  ...(gated ? { multBias: zeros([E, H]) } : {}),
  w2: zeros([E, D, H]),
  b2: zeros([E, D]),
})
const ffn = (weights: object, options: object) => () => {
  const x = zeros([1, 4, D])
  return ops.expertFfn(x, ops.route(x, zeros([E, D])), weights as ops.ExpertWeights, options)
}

test.each<[string, () => unknown, string, string]>([
  [
    'an unknown one',
    () => new MoE({ dim: D, activation: 'tanh' as 'relu' }),
    'OPTION',
    "[MoE] activation must be one of 'geglu', 'swiglu', 'reglu', 'gelu', 'relu', 'silu', 'relu2', got \"tanh\"",
  ],
  [
    'an unknown formula',
    ffn(weights(true), { geluApproximate: 'erf' }),
    'OPTION',
    "[expertFfn] geluApproximate must be one of 'none', 'tanh', got \"erf\"",
  ],
  [
    'the formula of gelu for another',
    () => new FeedForward(D, { activation: 'swiglu', geluApproximate: 'tanh' }),
    'OPTION',
    "[FeedForward] geluApproximate 'tanh' is for the activations 'geglu' and 'gelu', got 'swiglu'",
  ],
  [
    'one for experts of your own',
    () => new MoE({ dim: D, experts: [new FeedForward(D)], gatingTopN: 1, activation: 'relu' }),
    'OPTION',
    "[MoE] activation 'relu' is for the built-in experts",
  ],
  [
    'a multiplicative bias without gates',
    ffn({ ...weights(false), multBias: zeros([E, H]) }, { activation: 'silu' }),
    'OPTION',
    "[expertFfn] multBias is for gated activations, got 'silu'",
  ],
  [
    'gates without a multiplicative bias',
    ffn({ ...weights(true), multBias: undefined }, { activation: 'reglu' }),
    'OPTION',
    '[expertFfn] multBias must be a Tensor, got undefined',
  ],
  [
    'plain weights for gates',
    ffn({ ...weights(false), multBias: zeros([E, H]) }, {}),
    'SHAPE',
    `[expertFfn] w1 must be [${E}, ${2 * H}, ${D}], got [${E}, ${H}, ${D}]`,
  ],
  [
    'weights of gates for a plain one',
    ffn(weights(true), { activation: 'gelu' }),
    'SHAPE',
    `[expertFfn] w1 must be [${E}, ${H}, ${D}], got [${E}, ${2 * H}, ${D}]`,
  ],
])('%s is an error', (_, run, code, message) => {
  expect(run).toThrow(expect.objectContaining({ name: 'MoeError', code, message }))
})
