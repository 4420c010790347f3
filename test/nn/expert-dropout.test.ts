import { expect, test } from 'vitest'
import { dropout, Generator, MoE, manualSeed, ones, ops, randn, scope, setNumThreads, zeros } from '../../lib/index.js'
import { listOf, relativeError } from '../support/numbers.js'

const [E, D, H] = [3, 6, 37]

test('is the op dropout of the hidden values, row by row', () => {
  const x = randn([E, 8, D], { dtype: 'f64' })
  const [w1, w2] = [randn([E, H, D], { dtype: 'f64' }), randn([E, D, H], { dtype: 'f64' })]
  const generator = () => new Generator(7, 3)
  const weights = { w1, b1: null, w2, b2: null }
  const y = ops.expertFfn(x, null, weights, { activation: 'silu', dropout: 0.4, generator: generator() })
  const hidden = dropout(x.matmul(w1.transpose()).silu(), 0.4, generator())
  expect(relativeError(listOf(y), listOf(hidden.matmul(w2.transpose())))).toBeLessThan(1e-13)
})

test('keeps the mean, in training alone, and is the same on any number of threads', () => {
  const run = (expertDropout: number, threads: number, training = true) =>
    scope(() => {
      setNumThreads(threads)
      manualSeed(3)
      const moe = new MoE({ dim: D, numExperts: E, expertDropout, expertHiddenDim: 600, secondPolicyTrain: 'all' })
      moe.train(training)
      const x = randn([2, 300, D], { requiresGrad: true })
      const { outputs } = moe.forward(x)
      outputs.square().sum().backward()
      return [outputs, x.grad!, ...Object.values(moe.gradDict())].map((value) => listOf(value).slice())
    })
  const plain = run(0, 1)
  const [one, two] = [run(0.25, 1), run(0.25, 2)]
  expect(two).toEqual(one)
  const error = relativeError(one[0], plain[0])
  expect(error).toBeGreaterThan(0.005)
  expect(error).toBeLessThan(1.5)
  expect(run(0.25, 1, false)).toEqual(run(0, 1, false))
})

test('the share of zeros is the probability, and the generator advances once', () => {
  const generator = new Generator(4)
  const weights = { w1: zeros([1, 1000, 1]), b1: ones([1, 1000]), w2: ones([1, 1, 1000]), b2: null }
  const options = { activation: 'relu', dropout: 0.3, generator } as const
  const kept = listOf(ops.expertFfn(ones([50, 1]), null, weights, options)).map((sum) => (sum * 0.7) / 1000)
  expect(generator.step).toBe(1)
  const mean = kept.reduce((a, b) => a + b, 0) / kept.length
  expect(Math.abs(mean - 0.7)).toBeLessThan(4 * Math.sqrt((0.3 * 0.7) / 50_000))
  expect(new Set(kept).size).toBeGreaterThan(10)
})
