import { expect, it } from 'vitest'
import { FeedForward, MoE, type MoEOptions, manualSeed, noGrad, randn, scope, setNumThreads } from '../../lib/index.js'
import { bitsOf } from '../support/numbers.js'

it.each<Partial<MoEOptions>>([
  { router: 'switchMax', secondPlaceProb: 0.3, secondPlaceTemperature: 1 },
  { router: 'ntlb', capacityFactorTrain: 0.7 },
  { router: 'expertChoice', routerJitter: 0.1, routerDropout: 0.1 },
  { batchPrioritized: true, useSecondPlaceLoss: true, sampleExperts: true },
  { scoreFunction: 'sigmoid', expertBias: true, routingGroups: 4, topGroups: 2, dropless: true },
  { numExperts: [4, 3], secondPolicyTrain: 'all' },
])('outputs, losses and gradients are the same on 1, 2 and 3 threads: %o', (options) => {
  const results = [1, 2, 3].map((threads) =>
    scope(() => {
      setNumThreads(threads)
      manualSeed(5)
      const moe = new MoE({ dim: 24, numExperts: 8, ...options })
      const x = randn([3, 200, 24], { requiresGrad: true })
      const { outputs, totalAuxLoss } = moe.forward(x)
      outputs.square().sum().add(totalAuxLoss).backward()
      return [outputs, totalAuxLoss, x.grad!, ...Object.values(moe.gradDict())].map(bitsOf)
    }),
  )
  expect(results).toEqual(Array(3).fill(results[0]))
})

it('the outputs of an expert with more rows than its scratch memory holds are the same on 1, 2 and 3 threads', () => {
  const [tokens, dim, hidden] = [180, 6, 8192] // one thread takes 170 rows at a time
  const options = { dim, numExperts: 1, gatingTopN: 1, expertHiddenMult: (hidden * 1.5) / dim, capacityFactorEval: 2 }
  const outputs = [1, 2, 3].map((threads) =>
    scope(() => {
      setNumThreads(threads)
      manualSeed(0)
      const { outputs, routing } = noGrad(() => new MoE(options).eval().forward(randn([1, tokens, dim])))
      expect(routing.kept.to('f32').sum().item()).toBe(tokens)
      return bitsOf(outputs)
    }),
  )
  expect(outputs).toEqual(Array(3).fill(outputs[0]))
})

it.each<MoEOptions['computeDtype']>(['f32', 'bf16', 'bf16x3', 'f16'])(
  'many rows of small experts, which few threads compute in pieces and many do not, have the same results: %s',
  (computeDtype) => {
    const options = { dim: 20, numExperts: 3, dropless: true, expertDropout: 0.1, computeDtype }
    const results = [1, 2, 3, 8].map((threads) =>
      scope(() => {
        setNumThreads(threads)
        manualSeed(6)
        const moe = new MoE(options)
        const x = randn([1, 1600, 20], { requiresGrad: true })
        const { outputs, routing } = moe.forward(x, { noiseGates: true })
        const rows = routing.kept.to('f32').sum().item()
        expect([rows > 2016, rows < 3024]).toEqual([true, true]) // of which 1 and 2 threads make pieces
        outputs.square().sum().backward()
        return [outputs, x.grad!, ...Object.values(moe.gradDict())].map(bitsOf)
      }),
    )
    expect(results).toEqual(Array(4).fill(results[0]))
  },
)

it('a piece of an expert takes the few rows that would be left', () => {
  const results = [1, 2].map((threads) =>
    scope(() => {
      setNumThreads(threads)
      manualSeed(7)
      const layer = new FeedForward(20)
      const x = randn([9 * 126 + 5, 20], { requiresGrad: true }) // one thread makes pieces of 126 rows
      const y = layer.forward(x)
      y.square().sum().backward()
      return [y, x.grad!, ...Object.values(layer.gradDict())].map(bitsOf)
    }),
  )
  expect(results[1]).toEqual(results[0])
})
