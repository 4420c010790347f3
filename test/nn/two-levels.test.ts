import { describe, expect, test } from 'vitest'
import {
  concat,
  full,
  Generator,
  MoE,
  type MoEOptions,
  manualSeed,
  rand,
  randn,
  scope,
  tensor,
} from '../../lib/index.js'
import { listOf, relativeError } from '../support/numbers.js'

// What the second level computes is compared in answers.test.ts.

const D = 6
const layer = (options: Partial<MoEOptions> = {}) => new MoE({ dim: D, numExperts: [3, 4], ...options })

test('a group is a layer of its own, with the names of one', () => {
  const moe = layer({ outputDim: 5, expertHiddenDim: 7, sharedExperts: 1 })
  const names = Object.keys(moe.stateDict()).filter((name) => name.startsWith('experts.experts.2.'))
  expect(names).toContain('experts.experts.2.gate.to_gates.weight')
  expect(names).toContain('experts.experts.2.experts.experts.3.net.2.weight')
  const other = layer({ outputDim: 5, expertHiddenDim: 7, sharedExperts: 1 })
  other.loadStateDict(moe.stateDict())
  const x = randn([2, 20, D])
  const [a, b] = [moe, other].map((each) => {
    manualSeed(1)
    return each.forward(x).outputs
  })
  expect(a.shape).toEqual([2, 20, 5])
  expect(listOf(a)).toEqual(listOf(b))
})

describe.each<[string, Partial<MoEOptions>]>([
  ['topk', { secondPolicyTrain: 'all' }],
  ['switch, dropless', { router: 'switch', dropless: true }],
  ['switchMax', { router: 'switchMax' }],
  ['ntlb of few', { router: 'ntlb', ntlbTopK: 2 }],
  ['groups of tokens', { groupSize: 10, routedScalingFactor: 2 }],
])('%s', (_, options) => {
  test('every parameter and the input get a gradient, and padding none', () =>
    scope(() => {
      manualSeed(4)
      const moe = layer({ ...options, balanceLossCoef: 1, routerZLossCoef: 1 })
      const x = randn([2, 60 - 20 * Number('groupSize' in options), D], { requiresGrad: true })
      const [B, N] = x.shape
      const mask = tensor(Array.from({ length: B }, () => Array.from({ length: N }, (_, n) => Number(n % 5 > 0))))
      const { outputs, totalAuxLoss } = moe.forward(x, { mask })
      outputs.square().sum().add(totalAuxLoss).backward()
      const padding = [outputs, x.grad!].flatMap((value) => listOf(value).filter((_, i) => Math.floor(i / D) % 5 === 0))
      expect(padding.every((value) => value === 0)).toBe(true)
      for (const [name, grad] of Object.entries(moe.gradDict()))
        if (name.includes('to_gates')) expect(Math.hypot(...listOf(grad)), name).toBeGreaterThan(0)
    }))
})

test('routedScalingFactor multiplies the outputs, and losses are sums of both levels', () => {
  const run = (routedScalingFactor: number) => {
    manualSeed(2)
    const moe = layer({ routedScalingFactor, balanceLossCoef: 0.5, routerZLossCoef: 0.25 })
    return moe.forward(randn([2, 20, D]))
  }
  const [one, two] = [run(1), run(2)]
  expect(relativeError(listOf(two.outputs), listOf(one.outputs.mul(2)))).toBeLessThan(1e-6)
  const { totalAuxLoss, balanceLoss, routerZLoss } = one
  expect(totalAuxLoss.item()).toBeCloseTo(0.5 * balanceLoss.item() + 0.25 * routerZLoss.item(), 6)
  const evaluated = layer()
    .eval()
    .forward(randn([2, 20, D]))
  expect([evaluated.totalAuxLoss, evaluated.balanceLoss, evaluated.routerZLoss].map((t) => t.item())).toEqual([0, 0, 0])
})

test('groupRandom are the random numbers of the second level', () => {
  const moe = layer({ secondPolicyTrain: 'all', sampleExperts: true })
  const x = randn([2, 20, D])
  const uniforms = (shape: number[], seed: number) => rand(shape, { generator: new Generator(seed) })
  const random = { uniforms: uniforms([2, 2, 20], 1), gumbelUniforms: uniforms([2, 20, 3], 2) }
  const { capacity } = moe.forward(x).routing // 8 slots in each of 2 sequences: one sequence of 16
  const ofGroup = (seed: number) => ({
    uniforms: uniforms([2, 1, 2 * capacity], seed),
    gumbelUniforms: uniforms([1, 2 * capacity, 4], seed + 10),
  })
  const run = (seeds: number[]) => listOf(moe.forward(x, { random, groupRandom: seeds.map(ofGroup) }).outputs)
  expect(run([3, 4, 5])).toEqual(run([3, 4, 5]))
  expect(run([3, 4, 5])).not.toEqual(run([3, 4, 6]))
  expect(listOf(moe.forward(x, { random }).outputs)).not.toEqual(listOf(moe.forward(x, { random }).outputs))
  const bad = (groupRandom: unknown) => () => moe.forward(x, { groupRandom: groupRandom as object[] })
  expect(bad([{}])).toThrow('[MoE.forward] groupRandom must hold one for each of 3 groups, got 1')
  expect(bad([{}, {}, 7])).toThrow('must be an object, got 7')
  expect(bad([{}, {}, { uniforms: x }])).toThrow('[route] uniforms must be [2, 1, 16], got [2, 20, 6]')
  const plain = new MoE({ dim: D, numExperts: 3 })
  expect(() => plain.forward(x, { groupRandom: [] })).toThrow('[MoE.forward] groupRandom is for two levels')
})

test('no tokens, padding alone and a bias of the choice', () => {
  expect(layer().forward(randn([2, 0, D])).outputs.shape).toEqual([2, 0, D])
  const { outputs, totalAuxLoss } = layer().forward(randn([1, 8, D]), { mask: tensor([Array(8).fill(0)]) })
  expect(new Set(listOf(outputs))).toEqual(new Set([0]))
  expect(totalAuxLoss.item()).toBe(0)
  const moe = layer({ expertBias: true })
  moe.forward(randn([2, 30, D]))
  moe.updateExpertBias(0.5)
  const biases = Object.entries(moe.stateDict()).filter(([name]) => name.endsWith('expert_bias'))
  expect(biases).toHaveLength(4)
  for (const [name, bias] of biases) expect(new Set(listOf(bias).map(Math.abs)), name).toContain(0.5)
})

test('a token of NaN has a row of NaN, and no other', () => {
  const x = concat([randn([1, 5, D]), full([1, 1, D], Number.NaN), randn([1, 2, D])], 1)
  const rows = listOf(layer({ secondPolicyTrain: 'all' }).forward(x).outputs.sum(2))
  expect(rows.map(Number.isNaN)).toEqual(Array.from({ length: 8 }, (_, n) => n === 5))
})

test.each<[Partial<MoEOptions>, string]>([
  [{ numExperts: [3] as never }, 'numExperts must be a number or a pair, got [3]'],
  [{ numExperts: [2 ** 40, 2] }, 'numExperts[0] must be an integer from 1 to 65536, got 1099511627776'],
  [{ numExperts: [3, 0] }, 'numExperts[1] must be an integer of at least 1, got 0'],
  [{ numExperts: [3, 1] }, 'gatingTopN must be at most numExperts = 1, got 2 (the default)'],
  [{ gatingTopN: 4 }, 'gatingTopN must be at most numExperts = 3, got 4'],
  [{ scaleInput: true }, 'scaleInput is not for two levels'],
  [{ experts: [] }, 'experts is not for two levels'],
  [{ router: 'expertChoice' }, 'router "expertChoice" is not for two levels: its tokens have no first choice'],
  [{ numExperts: 4, capacityFactorSecondLevel: 2 }, 'capacityFactorSecondLevel is for two levels, numExperts [E1, E2]'],
])('bad options: %o', (options, message) => {
  expect(() => layer(options)).toThrow(`[MoE] ${message}`)
})
