import { expect, test } from 'vitest'
import { concat, MoE, type MoEOptions, manualSeed, randn, scope } from '../../lib/index.js'
import { Draw, long, relativeError, runSeed, values } from '../support/numbers.js'

// What the output of a token depends on: docs/concepts.md, "Not causal under capacity".

const seed = runSeed()
const [N, D, E] = [24, 6, 4]
const tokens = (batch: number, count: number) => randn([batch, count, D], { dtype: 'f64' })

/** The largest change, over many layers, of the outputs of the first tokens when all that comes after them changes. */
function change(mode: 'train' | 'eval', options: Omit<MoEOptions, 'dim'>): number {
  const draw = new Draw(seed)
  const changes = Array.from({ length: long ? 30 : 12 }, () =>
    scope(() => {
      manualSeed(draw.integer(0, 2 ** 31))
      const moe = new MoE({ dim: D, numExperts: E, dtype: 'f64', ...options })[mode === 'train' ? 'train' : 'eval']()
      const count = draw.integer(1, N - 1)
      const head = tokens(1, count)
      const futures = [1, 2].map(() => concat([concat([head, tokens(1, N - count)], 1), tokens(1, N)], 0))
      const [a, b] = futures.map((x) => {
        manualSeed(seed) // the same random numbers of the routing
        return values(moe.forward(x).outputs.slice(0, 0, 1).slice(1, 0, count))
      })
      return relativeError(a, b)
    }),
  )
  return Math.max(...changes)
}

test('later tokens change the outputs of earlier ones if capacity is short', () => {
  expect(change('train', {})).toBeGreaterThan(0.1)
  expect(change('eval', { capacityFactorEval: 1, thresholdEval: 0 })).toBeGreaterThan(0.1)
  expect(change('eval', { capacityFactorEval: 1, gatingTopN: 3, thresholdEval: 0 })).toBeGreaterThan(0.1)
  for (const router of ['switchMax', 'ntlb', 'expertChoice'] as const)
    expect(change('train', { router, capacityFactorTrain: 0.8 }), router).toBeGreaterThan(0.1)
  expect(change('train', { router: 'switch', batchPrioritized: true, capacityFactorTrain: 0.8 })).toBeGreaterThan(0.1)
})

test.each<[string, 'train' | 'eval', Omit<MoEOptions, 'dim'>]>([
  ['one expert per token', 'train', { gatingTopN: 1 }],
  ['one expert per token, sampled', 'train', { router: 'switch', sampleExperts: true, secondPlaceProb: 0.3 }],
  ['one expert per token, few slots', 'eval', { gatingTopN: 1, capacityFactorEval: 0.5 }],
  ['a slot for every token', 'eval', { capacityFactorEval: E }],
  ['a slot for every token, top-3, noise', 'train', { capacityFactorTrain: E, gatingTopN: 3, noiseGates: true }],
])('but not with %s', (_, mode, options) => {
  expect(change(mode, options)).toBeLessThan(1e-12)
})

test('with a slot for every token and threshold 0 an output does not depend on other tokens', () => {
  const draw = new Draw(seed)
  for (let round = 0; round < 20; round++)
    scope(() => {
      const options = { capacityFactorEval: E, thresholdEval: 0, gatingTopN: draw.integer(1, E) }
      const moe = new MoE({ dim: D, numExperts: E, dtype: 'f64', ...options }).eval()
      const x = tokens(3, N)
      const whole = moe.forward(x).outputs
      const [b, n, count] = [draw.integer(0, 2), draw.integer(0, N - 1), draw.integer(1, N)]
      const part = (y: typeof x, from: number, to: number) => y.slice(0, b, b + 1).slice(1, from, to)
      const one = moe.forward(part(x, n, n + 1)).outputs
      const prefix = moe.forward(part(x, 0, count)).outputs
      expect(relativeError(values(one), values(part(whole, n, n + 1)))).toBeLessThan(1e-12)
      expect(relativeError(values(prefix), values(part(whole, 0, count)))).toBeLessThan(1e-12)
    })
})

test('evaluation samples random numbers, unless the threshold is 0', () =>
  scope(() => {
    const x = tokens(2, N)
    const twice = (options: Omit<MoEOptions, 'dim'>) => {
      const moe = new MoE({ dim: D, numExperts: E, dtype: 'f64', ...options }).eval()
      return relativeError(values(moe.forward(x).outputs), values(moe.forward(x).outputs))
    }
    expect(twice({ thresholdEval: 0.6 })).toBeGreaterThan(0.01)
    expect(twice({ thresholdEval: 0 })).toBe(0)
  }))

test('rows as sequences of one: nothing is dropped, and the load-balancing loss does not measure the load', () =>
  scope(() => {
    const moe = new MoE({ dim: D, numExperts: E, gatingTopN: E, thresholdTrain: 0, dtype: 'f64' })
    const rows = randn([32, 1, D], { dtype: 'f64' })
    const { routing, balanceLoss, stats } = moe.forward(rows, { stats: true })
    expect([routing.capacity, stats?.droppedTokens]).toEqual([4, 0])
    const largest = routing.gate.slice(2, 0, 1).mean() // all experts are chosen, so gates are probabilities
    expect(balanceLoss.item()).toBeCloseTo(E * largest.item(), 12)
    expect(moe.forward(rows.reshape([1, 32, D])).routing.capacity).toBe((32 * 1.25) / E)
  }))
