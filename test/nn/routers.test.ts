import { describe, expect, test } from 'vitest'
import {
  getDefaultDevice,
  Linear,
  MoE,
  type MoEOptions,
  manualSeed,
  ops,
  randn,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { Draw, listOf, nested, relativeError } from '../support/numbers.js'

test("router 'switch' is top-1 with gates that are not divided", () => {
  const run = (options: Partial<MoEOptions>) => {
    manualSeed(6)
    const moe = new MoE({ dim: 6, numExperts: 4, expertHiddenDim: 5, ...options })
    const x = randn([2, 12, 6], { requiresGrad: true })
    const { outputs, totalAuxLoss, routing } = moe.forward(x)
    outputs.square().sum().add(totalAuxLoss).backward()
    return [outputs, totalAuxLoss, routing.weight, x.grad!, moe.gate.toGates.weight.grad!].map(listOf)
  }
  expect(run({ router: 'switch' })).toEqual(run({ gatingTopN: 1, gateNormalization: 'none' }))
  expect(run({ router: 'switch', scoreFunction: 'sigmoid', routerBias: true })[0]).toHaveLength(144)
})

describe('groupSize', () => {
  const [B, N, D, E] = [3, 8, 6, 4]
  const run = (router: 'topk' | 'expertChoice', groupSize: number | undefined, shape: number[], own = false) => {
    manualSeed(8)
    const experts = own ? Array.from({ length: E }, () => new Linear(D, D)) : undefined
    const moe = new MoE({ dim: D, numExperts: E, router, groupSize, ...(own ? { experts } : { sharedExperts: 1 }) })
    const draw = new Draw(4)
    const numbers = (size: number) => draw.array(size, () => draw.next())
    const of = (data: Float64Array, more: number[] = []) => tensor(Float32Array.from(data), [...shape, ...more])
    const x = of(
      draw.array(B * N * D, () => draw.normal()),
      [D],
    )
    x.requiresGrad = true
    const mask = of(draw.array(B * N, () => Number(draw.boolean(0.8))))
    const uniforms = tensor(Float32Array.from(numbers(2 * B * N)), [2, ...shape])
    const gumbelUniforms = of(numbers(B * N * E), [E])
    const sampled = router === 'topk' && { random: { uniforms, gumbelUniforms }, noiseGates: true }
    const { outputs, totalAuxLoss, routing } = moe.forward(x, { mask, ...sampled })
    outputs.square().sum().add(totalAuxLoss).backward()
    const same = [outputs, totalAuxLoss, routing.position, routing.weight, x.grad!, moe.gate.toGates.weight.grad!]
    return { values: same.map(listOf), shapes: [outputs.shape, routing.position.shape] }
  }

  test.each([
    ['topk', false],
    ['topk', true],
    ['expertChoice', false],
  ] as const)('%s: groups are as sequences of their length (own experts: %s)', (router, own) => {
    for (const [groupSize, groups] of [
      [4, 6],
      [12, 2],
      [24, 1],
      [1, 24],
    ]) {
      const grouped = run(router, groupSize, [B, N], own)
      expect(grouped.values).toEqual(run(router, undefined, [groups, groupSize], own).values)
      const K = router === 'topk' ? 2 : E
      expect(grouped.shapes).toEqual([
        [B, N, D],
        [groups, groupSize, K],
      ])
    }
    expect(run(router, 8, [B, N], own)).toEqual(run(router, undefined, [B, N], own))
  })

  test('groups that do not divide the tokens, and other shapes, are errors', () => {
    const moe = new MoE({ dim: D, numExperts: E, groupSize: 5 })
    expect(() => moe.forward(randn([3, 8, D]))).toThrow('[MoE.forward] groupSize = 5 must divide the 3 · 8 tokens of x')
    const mask = tensor([[1, 1, 1, 1, 1]])
    expect(() => moe.forward(randn([2, 10, D]), { mask })).toThrow('[MoE.forward] mask must be [2, 10], got [1, 5]')
    expect(moe.forward(randn([0, 8, D])).outputs.shape).toEqual([0, 8, D])
    for (const [random, message] of [
      [7, 'must be an object, got 7'],
      [{ uniform: 1 }, 'unknown option "uniform"'],
      [{ uniforms: [0.5] }, 'uniforms must be a Tensor'],
      [{ uniforms: randn([]) }, 'uniforms must be [2, 10], got []'],
      [{ gumbelUniforms: randn([2, 10]) }, `gumbelUniforms must be [2, 10, ${E}], got [2, 10]`],
    ] as const)
      expect(() => moe.forward(randn([2, 10, D]), { random: random as never }), message).toThrow(message)
  })
})

describe('scores', () => {
  const D = 6
  const options = { dim: D, numExperts: 8, dropless: true, secondPolicyTrain: 'all', dtype: 'f64' } as const

  test('softmaxAfterTopk is softmax with gates over the K experts, but without normalization too', () => {
    const [x, w] = [randn([2, 9, D], { dtype: 'f64' }), randn([5, D], { dtype: 'f64' })]
    const run = (more: ops.RouteOptions) => listOf(ops.route(x, w, { topN: 3, secondPolicy: 'all', ...more }).weight)
    const plain = run({})
    expect(run({ scoreFunction: 'softmaxAfterTopk' })).toEqual(plain)
    expect(run({ scoreFunction: 'softmaxAfterTopk', gateNormalization: 'none' })).toEqual(plain)
    expect(run({ gateNormalization: 'none' })).not.toEqual(plain)
  })

  test('sigmoidAfterTopk divides by nothing unless it is asked to', () => {
    const [x, w] = [randn([2, 9, D], { dtype: 'f64' }), randn([5, D], { dtype: 'f64' })]
    const { weight, expertIndex } = ops.route(x, w, { topN: 1, scoreFunction: 'sigmoidAfterTopk' })
    const logits = nested(x.matmul(w.transpose())).flat()
    const index = listOf(expertIndex)
    const wanted = logits.map((row, t) => 1 / (1 + Math.exp(-row[index[t]])))
    expect(relativeError(listOf(weight), wanted)).toBeLessThan(1e-14)
    const normalized = ops.route(x, w, { topN: 1, scoreFunction: 'sigmoidAfterTopk', gateNormalization: 'topk' })
    expect(new Set(listOf(normalized.weight))).toEqual(new Set([1]))
  })

  test('routedScalingFactor multiplies the outputs of routed experts, and their gradients', () => {
    const run = (more: Partial<MoEOptions>) => {
      manualSeed(3)
      const moe = new MoE({ ...options, ...more, straightThroughDispatchTensor: false })
      const x = randn([2, 9, D], { dtype: 'f64', requiresGrad: true })
      const { outputs } = moe.forward(x)
      outputs.sum().backward()
      return [outputs, x.grad!, moe.gate.toGates.weight.grad!].map(listOf)
    }
    for (const router of ['topk', 'expertChoice'] as const) {
      const more = router === 'topk' ? {} : { router, dropless: false, secondPolicyTrain: undefined }
      const [one, some] = [run(more), run({ ...more, routedScalingFactor: 2.5 })]
      for (const [i, list] of some.entries())
        expect(
          relativeError(
            list,
            one[i].map((value) => 2.5 * value),
          ),
        ).toBeLessThan(1e-12)
    }
  })

  test('scaleInput: linear experts do not tell whether their input or their output is multiplied', () => {
    const run = (scaleInput: boolean, groupSize?: number) => {
      manualSeed(9)
      const experts = Array.from({ length: 4 }, () => new Linear(D, D, { bias: false, dtype: 'f64' }))
      const shared = { straightThroughDispatchTensor: false, gatingTopN: 3, groupSize, routedScalingFactor: 1.5 }
      const moe = new MoE({ dim: D, experts, scaleInput, dtype: 'f64', ...shared })
      const x = randn([2, 30, D], { dtype: 'f64', requiresGrad: true })
      const mask = tensor(Array.from({ length: 2 }, () => Array.from({ length: 30 }, (_, n) => Number(n % 7 > 0))))
      const uniforms = tensor(new Float64Array(180).fill(0.1), [3, 2, 30])
      const { outputs, routing } = moe.forward(x, { mask, random: { uniforms } })
      outputs.square().sum().backward()
      const list = [outputs, x.grad!, moe.gate.toGates.weight.grad!, experts[1].weight.grad!].map(listOf)
      return { list, kept: listOf(routing.kept) }
    }
    for (const groupSize of [undefined, 20]) {
      const [output, input] = [run(false, groupSize), run(true, groupSize)]
      expect(input.kept).toEqual(output.kept)
      expect(new Set(input.kept)).toEqual(new Set([0, 1]))
      for (const [i, list] of input.list.entries()) expect(relativeError(list, output.list[i])).toBeLessThan(1e-12)
    }
  })

  test.each(['topk', 'expertChoice'] as const)('%s: jitter and dropout are for the router in training', (router) => {
    const [shape, p, jitter] = [[2, 7, D], 0.3, 0.25]
    const draw = new Draw(12)
    const [a, b] = [0, 1].map(() => draw.array(84, () => Math.fround(draw.next() * (1 - 2 ** -24))))
    b[3] = p // is kept
    const moe = new MoE({ dim: D, numExperts: 4, router, routerJitter: jitter, routerDropout: p, dtype: 'f64' })
    const x = randn(shape, { dtype: 'f64', requiresGrad: true })
    const factors = Float64Array.from(a, (u, i) => (b[i] < p ? 0 : (1 - jitter + 2 * jitter * u) / (1 - p)))
    const uniforms = tensor(new Float64Array(28), [2, 2, 7])
    const fixed = router === 'topk' ? { uniforms } : {}
    const routed = (seen: Tensor, capacity: number) => {
      const { weight } = moe.gate.toGates
      return router === 'topk'
        ? ops.route(seen, weight, { capacity, uniforms })
        : ops.expertChoice(seen, weight, { capacity })
    }
    const random = { jitterUniforms: tensor(a, shape), dropoutUniforms: tensor(b, shape), ...fixed }
    const { outputs, routing } = moe.forward(x, { random })
    const expected = routed(x.mul(tensor(factors, shape)), routing.capacity)
    expect(relativeError(listOf(routing.weight), listOf(expected.weight))).toBeLessThan(1e-14)
    expect(listOf(routing.position)).toEqual(listOf(expected.position))
    const experts = moe.experts as unknown as ops.ExpertWeights
    expect(listOf(outputs)).toEqual(listOf(ops.expertFfn(x, routing, experts)))
    const gradient = (loss: Tensor) => {
      x.grad = null
      loss.backward()
      return listOf(x.grad!).slice()
    }
    const theirs = gradient(expected.weight.square().sum())
    const ours = gradient(moe.gate.forward(x, { random }).weight.square().sum())
    expect(relativeError(ours, theirs)).toBeLessThan(1e-12)
    const sampled = (seed?: number) => {
      if (seed !== undefined) manualSeed(seed)
      return Array.from(listOf(moe.forward(x).routing.weight))
    }
    const first = sampled(3)
    expect(sampled()).not.toEqual(first)
    expect(sampled(3)).toEqual(first)
    moe.eval()
    const quiet = moe.gate.forward(x, { random: fixed })
    expect(listOf(quiet.weight)).toEqual(listOf(routed(x, quiet.capacity).weight))
  })

  test('updateExpertBias moves the bias towards even loads, by what training has seen of real tokens', () => {
    manualSeed(5)
    const moe = new MoE({ ...options, scoreFunction: 'sigmoid', expertBias: true })
    const mask = tensor(Array.from({ length: 2 }, () => Array.from({ length: 40 }, (_, n) => Number(n < 30))))
    const x = randn([2, 40, D], { dtype: 'f64' })
    const bias = () => listOf((moe.gate as { expertBias?: Tensor }).expertBias!)
    moe.updateExpertBias(1)
    expect(bias()).toEqual(Array(8).fill(0)) // no load yet
    moe.eval().forward(x)
    moe.train().updateExpertBias(1)
    expect(bias()).toEqual(Array(8).fill(0)) // evaluation does not count
    const loads = () => {
      const { routing } = moe.forward(x, { mask })
      const index = listOf(routing.expertIndex).filter((_, i) => Math.floor(i / 2) % 40 < 30)
      return Array.from({ length: 8 }, (_, e) => index.filter((entry) => entry === e).length)
    }
    const counts = loads().map((count, e) => count + loads()[e]) // each call of loads() counts
    expect(counts.reduce((a, b) => a + b)).toBe(240)
    moe.updateExpertBias(0.25)
    expect(bias()).toEqual(counts.map((count) => 0.25 * Math.sign(30 - count) + 0))
    const spread = (list: number[]) => Math.max(...list) - Math.min(...list)
    const before = spread(counts) / 2
    for (let step = 0; step < 60; step++)
      scope(() => {
        loads()
        moe.updateExpertBias(0.02)
      })
    expect(spread(loads())).toBeLessThan(before / 2)
    expect(Object.keys(moe.stateDict())).toContain('gate.expert_bias')
    expect(() => new MoE({ dim: D }).updateExpertBias(1)).toThrow(
      '[updateExpertBias] the router needs expertBias: true',
    )
    expect(() => moe.updateExpertBias(Number.NaN)).toThrow('[updateExpertBias] rate must be a finite number, got NaN')
  })

  test.each(['topk', 'expertChoice'] as const)('a bias of the logits and its gradient, of %s', (router) => {
    manualSeed(4)
    const moe = new MoE({ dim: D, numExperts: 5, router, routerBias: true, dtype: 'f64' })
    const { weight, bias } = moe.gate.toGates
    const mask = tensor([[1, 1, 0, 1, 1, 1, 1]])
    const x = randn([1, 7, D], { dtype: 'f64', requiresGrad: true })
    const uniforms = tensor(new Float64Array(14).fill(0.001), [2, 1, 7])
    const run = () => moe.gate.forward(x, { mask, ...(router === 'topk' && { random: { uniforms } }) })
    const objective = () => scope(() => run().weight.square().sum().add(run().totalAuxLoss).item())
    const { routerZLoss } = run()
    const logits = nested(x.matmul(weight.transpose()).add(bias!))[0].filter((_, n) => n !== 2)
    const lse = logits.map((row) => Math.log(row.reduce((sum, l) => sum + Math.exp(l), 0)))
    expect(routerZLoss.item()).toBeCloseTo(lse.reduce((sum, l) => sum + l * l, 0) / 6, 12)
    const { weight: combine, totalAuxLoss } = run()
    combine.square().sum().add(totalAuxLoss).backward()
    const [given, gradient, h] = [listOf(bias!), listOf(bias!.grad!), 1e-6]
    for (let e = 0; e < 5; e++) {
      const at = (step: number) => {
        bias!.copyFrom(tensor(Float64Array.from(given, (b, i) => (i === e ? b + step : b))))
        return objective()
      }
      expect((at(h) - at(-h)) / (2 * h)).toBeCloseTo(gradient[e], 6)
      bias!.copyFrom(tensor(Float64Array.from(given)))
    }
    expect(Object.keys(moe.stateDict())).toContain('gate.to_gates.bias')
    expect(() => moe.gate.forward(randn([1, 7, D + 1], { dtype: 'f64' }))).toThrow('Gating.forward]')
  })

  test('a bias of the choice has the shape, dtype and device of the logits', () => {
    const [x, w] = [randn([2, 9, D]), randn([5, D])]
    expect(() => ops.route(x, w, { expertBias: randn([4]) })).toThrow('[route] expertBias must be [5], got [4]')
    expect(() => ops.route(x, w, { expertBias: randn([5], { dtype: 'f64' }) })).toThrow(
      '[route] expertBias must be f32, got f64',
    )
  })
})

test.each<[Partial<MoEOptions>, string]>([
  [{ expertDropout: 1 }, 'expertDropout must be below 1, got 1'],
  [{ routerJitter: 1 }, 'routerJitter must be below 1, got 1'],
  [{ routerDropout: -0.1 }, 'routerDropout must be a finite number from 0 to 1, got -0.1'],
  [{ router: 'switch', gatingTopN: 1 }, 'gatingTopN is for router "topk", got router "switch"'],
  [{ router: 'switch', gateNormalization: 'topk' }, 'gateNormalization is for router "topk", got router "switch"'],
  [{ router: 'switch', secondPolicyTrain: 'all' }, 'secondPolicyTrain is for router "topk", got router "switch"'],
  [{ groupSize: 0 }, 'groupSize must be an integer of at least 1, got 0'],
  [{ router: 'expertChoice', scoreFunction: 'sigmoid' }, 'scoreFunction is for router "topk" or "switch"'],
  [{ router: 'expertChoice', expertBias: true }, 'expertBias is for router "topk"'],
  [{ router: 'expertChoice', routingGroups: 2 }, 'routingGroups is for router "topk"'],
  [
    { scoreFunction: 'sigmoid', noiseGates: true },
    'noiseGates is for scoreFunction "softmax", got scoreFunction "sigmoid"',
  ],
  [{ scoreFunction: 'sigmoid', differentiableTopk: true }, 'differentiableTopk is for scoreFunction "softmax"'],
  [{ expertBias: true, differentiableTopk: true }, 'differentiableTopk is not for expertBias'],
  [{ routingGroups: 2, topGroups: 2, differentiableTopk: true }, 'differentiableTopk is not for routingGroups'],
  [{ routingGroups: 3 }, 'routingGroups must divide the 4 experts, got 3'],
  [{ routingGroups: 4 }, 'topGroups must hold at least the 2 experts of a token, got 1 with 1 experts'],
  [{ topGroups: 2 }, 'topGroups must be at most routingGroups = 1, got 2'],
  [
    { router: 'expertchoice' as never },
    "router must be one of 'topk', 'switch', 'switchMax', 'ntlb', 'expertChoice', got \"expertchoice\"",
  ],
  [{ router: 'expertChoice', gatingTopN: 3 }, 'gatingTopN is for router "topk", got router "expertChoice"'],
  [{ router: 'expertChoice', dropless: true }, 'dropless is for router "topk" or "switch", got router "expertChoice"'],
  [{ router: 'expertChoice', thresholdTrain: 0 }, 'thresholdTrain is for router "topk", got router "expertChoice"'],
  [
    { router: 'expertChoice', noiseGates: true },
    'noiseGates is for router "topk" or "switch" or "switchMax" or "ntlb", got router "expertChoice"',
  ],
  [{ router: 'expertChoice', batchPrioritized: true }, 'batchPrioritized is for router "topk"'],
  [{ router: 'switchMax', batchPrioritized: true }, 'batchPrioritized is for router "topk" or "switch" or "ntlb"'],
  [{ router: 'ntlb', dropless: true }, 'dropless is for router "topk" or "switch", got router "ntlb"'],
  [{ dropless: true, batchPrioritized: true }, 'batchPrioritized is for dropless false, got dropless true'],
  [{ router: 'ntlb', balanceDensity: 'kept' }, "balanceDensity is 'assigned' for ntlb"],
  [{ router: 'ntlb', ntlbTopK: 5 }, 'ntlbTopK must be at most numExperts = 4, got 5'],
  [{ ntlbTopK: 2 }, 'ntlbTopK is for router "ntlb", got router "topk"'],
  [{ router: 'switch', useSecondPlaceLoss: true }, 'useSecondPlaceLoss is for router "topk", got router "switch"'],
  [{ gatingTopN: 1, useSecondPlaceLoss: true }, 'useSecondPlaceLoss needs at least two experts per token, got 1'],
  [{ routerTemperature: 2 }, 'routerTemperature needs sampleExperts, got false'],
  [{ sampleExperts: true, noiseGates: true }, 'sampleExperts is not for noiseGates'],
  [{ sampleExperts: true, differentiableTopk: true }, 'sampleExperts is not for differentiableTopk'],
  [{ sampleExperts: true, routingGroups: 2, topGroups: 2 }, 'sampleExperts is not for routingGroups'],
  [{ secondPlaceTemperature: 1 }, 'secondPlaceTemperature needs secondPlaceProb, got 0'],
  [{ secondPlaceProb: 2 }, 'secondPlaceProb must be a finite number from 0 to 1, got 2'],
  [{ router: 'expertChoice', differentiableTopk: true }, 'differentiableTopk is for router "topk"'],
  [{ router: 'expertChoice', balanceDensity: 'assigned' }, 'balanceDensity is for router "topk"'],
  [{ router: 'expertChoice', gateNormalization: 'none' }, 'gateNormalization is for router "topk"'],
  [{ router: 'expertChoice', secondPolicyEval: 'all' }, 'secondPolicyEval is for router "topk"'],
  [{ dropless: true, minExpertCapacity: 1 }, 'minExpertCapacity is for dropless false, got dropless true'],
  [{ expertChoiceOver: 'experts' }, 'expertChoiceOver is for router "expertChoice", got router "topk"'],
  [{ dropless: true, capacityFactorTrain: 2 }, 'capacityFactorTrain is for dropless false, got dropless true'],
  [{ dropless: true, capacityFactorEval: 1 }, 'capacityFactorEval is for dropless false, got dropless true'],
])('options without a meaning for the router are errors: %o', (options, message) => {
  expect(() => new MoE({ dim: 8, numExperts: 4, ...options })).toThrow(`[MoE] ${message}`)
})

test.each([
  ['jitterUniforms', 'routerJitter'],
  ['dropoutUniforms', 'routerDropout'],
])('%s without %s is an error', (name, option) =>
  scope(() => {
    using moe = new MoE({ dim: 8, numExperts: 4 })
    const forward = () => moe.forward(randn([1, 5, 8]), { random: { [name]: zeros([1, 5, 8]) } })
    expect(forward).toThrow(`[TopNGating.forward] ${name} needs ${option}`)
  }),
)

test('errors of a routing name the operation that was called', () => {
  const x = randn([1, 40, 2])
  const made = ops.route(x, randn([3, 2]), { threshold: 0 })
  const weights = {
    w1: randn([3, 6, 2]),
    b1: randn([3, 6]),
    multBias: randn([3, 3]),
    w2: randn([3, 2, 3]),
    b2: randn([3, 2]),
  }
  const wrong = { ...made, expertIndex: made.expertIndex.to('f32').add(9).to('i32') }
  const first = zeros([1, 40, 2], { dtype: 'i32' })
  const shared = { ...made, expertIndex: first, position: first }
  const inOneSlot = [() => ops.dispatch(x, shared), () => ops.combine(randn([3, 1, made.capacity, 2]), shared)]
  if (getDefaultDevice() === 'cpu') {
    for (const use of inOneSlot) expect(use).toThrow(/tokens 0 and 0 have the same slot: position 0 of expert 0$/)
    const expected = (op: string) => `[${op}] expert_index must be in [0, 3), got `
    expect(() => ops.expertFfn(x, wrong, weights)).toThrow(expected('expertFfn'))
    expect(() => ops.dispatch(x, wrong)).toThrow(expected('dispatch'))
    expect(() => ops.combine(randn([3, 1, made.capacity, 2]), wrong)).toThrow(expected('combine'))
    expect(() => ops.expertFfn(x, { ...made, capacity: 1 }, weights)).toThrow(
      /^\[expertFfn\] \d+ assignments are dispatched, but there is room for 3 rows$/,
    )
  } else {
    const later = /^\[toData\] expert index and position must be in range, got/ // with the next copy to the host
    expect(() => ops.expertFfn(x, wrong, weights).dataSync()).toThrow(later)
    for (const use of inOneSlot)
      expect(() => use().dataSync()).toThrow(/two tokens have the same slot of an expert: position 0$/)
  }
  expect(() => ops.expertFfn(x, { ...made, numExperts: 4 }, weights)).toThrow('[expertFfn] w2 must have 4 experts')
})

test('experts that are sampled are others each time', () =>
  scope(() => {
    const [x, weight] = [randn([2, 20, 6]), randn([8, 6])]
    const chosen = () => listOf(ops.route(x, weight, { sampleExperts: true }).expertIndex)
    expect(chosen()).not.toEqual(chosen())
  }))
