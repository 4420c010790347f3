import { describe, expect, test } from 'vitest'
import {
  AdamW,
  CausalSelfAttention,
  crossEntropy,
  Dropout,
  Generator,
  LayerNorm,
  Linear,
  Lion,
  MoE,
  ops,
  Parameter,
  RMSNorm,
  randn,
  SGD,
  SoftMoE,
  SparseMoEBlock,
  scope,
  tensor,
  zeros,
} from '../../lib/index.js'
import { values } from '../support/numbers.js'

// The defaults, as documented.

test('optimizers', () => {
  const parameters = [new Parameter(zeros([1]))]
  const { lr, betas, eps, weightDecay } = new AdamW(parameters)
  expect({ lr, betas, eps, weightDecay }).toEqual({ lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 1e-2 })
  const lion = new Lion(parameters)
  expect([lion.lr, lion.betas, lion.weightDecay]).toEqual([1e-4, [0.9, 0.99], 0])
  const sgd = new SGD(parameters)
  expect([sgd.lr, sgd.momentum, sgd.weightDecay]).toEqual([1e-3, 0, 0])
})

test('layers', () => {
  expect(new LayerNorm(4).eps).toBe(1e-5)
  expect(new Dropout().p).toBe(0.5)
  expect(new Linear(2, 3).bias?.shape).toEqual([3])
  const attention = new CausalSelfAttention(16)
  expect([attention.heads, attention.query.bias]).toEqual([8, null])
  const soft = new SoftMoE({ dim: 6, numSlots: 1 })
  expect([soft.numExperts, soft.experts.w1.shape, soft.experts.dropout.p]).toEqual([4, [4, 24, 6], 0])
  expect(soft.norm).toBeInstanceOf(RMSNorm)
  const block = new SparseMoEBlock(new MoE({ dim: 4, numExperts: 2 }))
  expect([block.ffBefore === null, block.ffAfter === null]).toEqual([true, false])
})

describe('MoE', () => {
  /** Everything that an option changes, of two layers with the same state and the same random numbers. */
  const results = (options: object, training: boolean) =>
    scope(() => {
      const moe = new MoE({ dim: 8, ...options }).train(training)
      const state = Object.entries(moe.stateDict()).map(([name, value], step) => {
        const drawn = () => randn(value.shape, { generator: new Generator(1, step) })
        return [name, name.includes('threshold') ? value : drawn()]
      })
      moe.loadStateDict(Object.fromEntries(state))
      const x = randn([2, 64, 8], { generator: new Generator(2) })
      x.requiresGrad = true
      const uniforms = randn([2, 2, 64], { generator: new Generator(3) }).sigmoid()
      const { outputs, totalAuxLoss, routing } = moe.forward(x, { random: { uniforms } })
      outputs.square().sum().add(totalAuxLoss).backward()
      return [outputs, totalAuxLoss, routing.position, x.grad!].map((t) => Array.from(values(t)))
    })
  const spelled = {
    numExperts: 16,
    expertHiddenMult: 4,
    expertHiddenDim: 21,
    expertDropout: 0,
    expertBiases: true,
    outputDim: 8,
    sharedExperts: 0,
    sharedExpertGate: false,
    swigluLimit: null,
    swigluAlpha: null,
    activation: 'geglu',
    geluApproximate: 'none',
    gatingTopN: 2,
    thresholdTrain: 0.2,
    thresholdEval: 0.2,
    capacityFactorTrain: 1.25,
    capacityFactorEval: 2,
    balanceLossCoef: 1e-2,
    routerZLossCoef: 1e-3,
    straightThroughDispatchTensor: true,
    routerBias: false,
    routerJitter: 0,
    routerDropout: 0,
    scoreFunction: 'softmax',
    routingGroups: 1,
    topGroups: 1,
    expertBias: false,
    routedScalingFactor: 1,
    scaleInput: false,
    differentiableTopk: false,
    noiseGates: false,
    balanceDensity: 'kept',
    sampleExperts: false,
    routerTemperature: 1,
    secondPlaceProb: 0,
    batchPrioritized: false,
    useSecondPlaceLoss: false,
    gateNormalization: 'topk',
    secondPolicyTrain: 'random',
    secondPolicyEval: 'random',
    minExpertCapacity: 4,
    eps: 1e-9,
  } as const

  test.each([true, false])('training %s', (training) => {
    const plain = results({}, training)
    expect(results(spelled, training)).toEqual(plain)
    // and they do make a difference here
    const mode = training ? 'Train' : 'Eval'
    for (const other of [{ [`capacityFactor${mode}`]: 0.5 }, { [`threshold${mode}`]: 0.9 }])
      expect(results({ ...spelled, ...other }, training)).not.toEqual(plain)
  })
})

test('rows with target −100 do not count', () =>
  scope(() => {
    const logits = randn([3, 5])
    const one = crossEntropy(logits.slice(0, 1, 2), tensor(Int32Array.of(2)))
    const loss = crossEntropy(logits, tensor(Int32Array.of(-100, 2, -100)))
    expect(loss.item()).toBe(one.item())
    expect(crossEntropy(logits, tensor(Int32Array.of(-100, -100, -100))).item()).toBe(0)
  }))

test('a policy of its own in each mode', () => {
  const moe = new MoE({ dim: 8, numExperts: 4, secondPolicyTrain: 'all', secondPolicyEval: 'none', dropless: true })
  const seconds = () =>
    scope(() => {
      const kept = Array.from(moe.forward(randn([2, 16, 8])).routing.kept.dataSync())
      return kept.filter((value, i) => i % 2 === 1 && value === 1).length
    })
  expect(seconds()).toBe(32)
  moe.eval()
  expect(seconds()).toBe(0)
})

test('capacity is at least minExpertCapacity', () => {
  const moe = new MoE({ dim: 8, numExperts: 8, minExpertCapacity: 1 })
  expect(scope(() => moe.forward(randn([1, 16, 8])).routing.capacity)).toBe(2)
  expect(ops.expertCapacity(16, 8, 1.25, 7)).toBe(7)
})

test('capacity is at least 4, at most N', () => {
  expect([ops.expertCapacity(64, 16, 1.25), ops.expertCapacity(8, 16, 1.25), ops.expertCapacity(64, 2, 9)]).toEqual([
    5, 4, 64,
  ])
})
