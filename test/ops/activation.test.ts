import { describe, expect, test } from 'vitest'
import { type Experts, FeedForward, MoE, ops, randn, SparseMoEBlock, scope, tensor, zeros } from '../../lib/index.js'
import { activations, isGated } from '../../lib/ops/activation.js'
import { relativeError, values } from '../support/numbers.js'

// The option `activation`. Its values are tested against plain loops in test/native, its gradients in gradcheck.test.ts.

const [E, D, H] = [3, 6, 70]

const cases: ops.ActivationOptions[] = [
  ...activations.map((activation) => ({ activation })),
  { activation: 'geglu', geluApproximate: 'tanh' },
  { activation: 'gelu', geluApproximate: 'tanh' },
  { activation: 'swiglu', swigluLimit: 2, swigluAlpha: 1.5 },
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

test('SwiGLU with a limit is that of gpt-oss', () =>
  scope(() => {
    const moe = new MoE({ dim: D, numExperts: 1, gatingTopN: 1, activation: 'swiglu', swigluLimit: 0.5, dtype: 'f64' })
    const { w1, b1, multBias, w2, b2 } = moe.experts as Experts
    for (const parameter of [w1, multBias!]) parameter.copyFrom(randn(parameter.shape, { dtype: 'f64' }))
    const x = randn([1, 9, D], { dtype: 'f64' })
    const width = multBias!.shape[1]
    const a = values(ops.linear(x, w1.reshape([2 * width, D]), b1!.reshape([2 * width])))
    const mu = values(multBias!)
    let clamped = 0
    const hidden = Array.from({ length: 9 * width }, (_, i) => {
      const [t, j] = [Math.floor(i / width), i % width]
      const [value, gate] = [a[t * 2 * width + j], a[t * 2 * width + width + j]]
      const g = Math.min(gate, 0.5)
      if (g < gate) clamped++
      return (g / (1 + Math.exp(-1.702 * g))) * (Math.max(-0.5, Math.min(0.5, value)) + 1) * mu[j]
    })
    expect(clamped).toBeGreaterThan(0)
    const y = ops.linear(tensor(Float64Array.from(hidden), [9, width]), w2.reshape([D, width]), b2!.reshape([D]))
    expect(relativeError(values(moe.forward(x).outputs), values(y))).toBeLessThan(1e-14)
  }))

describe('experts without biases, and of other widths', () => {
  const options = { dim: D, numExperts: E, expertHiddenDim: 5, outputDim: 4, dtype: 'f64' } as const

  test.each([
    [true, ['b1', 'multBias', 'b2']],
    ['linear', ['b1', 'b2']],
    [false, []],
  ] as const)('expertBiases %s', (expertBiases, biases) =>
    scope(() => {
      const moe = new MoE({ ...options, expertBiases })
      const { experts } = moe as { experts: Experts }
      expect([experts.w1.shape, experts.w2.shape]).toEqual([
        [E, 10, D],
        [E, 4, 5],
      ])
      const names = ['b1', 'multBias', 'b2'] as const
      expect(names.filter((name) => experts[name] !== null)).toEqual(biases)
      // as with biases that change nothing; a multiplicative one is 1 at the start
      const full = new MoE(options)
      full.loadStateDict(moe.stateDict(), { strict: false })
      for (const bias of expertBiases ? [] : [(full.experts as Experts).b1!, (full.experts as Experts).b2!])
        bias.copyFrom(zeros(bias.shape, { dtype: 'f64' }))
      const x = randn([2, 7, D], { dtype: 'f64' })
      const random = { uniforms: zeros([2, 2, 7]) }
      const [got, expected] = [moe, full].map((layer) => {
        layer.zeroGrad()
        const input = tensor(Float64Array.from(values(x)), x.shape)
        input.requiresGrad = true
        const { outputs } = layer.forward(input, { random })
        outputs.square().sum().backward()
        const { w1, w2 } = layer.experts as Experts
        return [outputs, input.grad!, layer.gate.toGates.weight.grad!, w1.grad!, w2.grad!].map(values)
      })
      expect(got[0].length).toBe(2 * 7 * 4)
      for (const [i, numbers] of got.entries()) expect(relativeError(numbers, expected[i])).toBeLessThan(1e-14)
    }),
  )
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
    `[MoE] activation must be one of ${activations.map((name) => `'${name}'`).join(', ')}, got "tanh"`,
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
    '[MoE] activation is for the built-in experts',
  ],
  [
    'a limit for another',
    () => new MoE({ dim: D, swigluLimit: 7 }),
    'OPTION',
    '[MoE] swigluLimit is for activation "swiglu", got activation "geglu"',
  ],
  [
    'a limit of zero',
    () => new MoE({ dim: D, activation: 'swiglu', swigluLimit: 0 }),
    'OPTION',
    '[MoE] swigluLimit must be above 0, got 0',
  ],
  [
    'alpha without a limit',
    () => new FeedForward(D, { activation: 'swiglu', swigluAlpha: 1 }),
    'OPTION',
    '[FeedForward] swigluAlpha needs swigluLimit, got null',
  ],
  [
    'biases of another kind',
    () => new MoE({ dim: D, expertBiases: 'none' as 'linear' }),
    'OPTION',
    '[MoE] expertBiases must be one of true, false, \'linear\', got "none"',
  ],
  [
    'no output',
    () => new MoE({ dim: D, outputDim: 0 }),
    'OPTION',
    '[MoE] outputDim must be an integer of at least 1, got 0',
  ],
  [
    'a width for experts of your own',
    () => new MoE({ dim: D, experts: [new FeedForward(D)], gatingTopN: 1, outputDim: 3 }),
    'OPTION',
    '[MoE] outputDim is for the built-in experts',
  ],
  [
    'a residual of another width',
    () => new SparseMoEBlock(new MoE({ dim: D, outputDim: 3 })),
    'OPTION',
    `[SparseMoEBlock] moe must return what it takes, got outputDim 3 for dim ${D}`,
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
