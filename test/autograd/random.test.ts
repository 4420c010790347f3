import { expect, test } from 'vitest'
import {
  Dropout,
  defaultGenerator,
  Generator,
  MoE,
  manualSeed,
  ones,
  ops,
  rand,
  randn,
  scope,
  trainStepAsync,
} from '../../lib/index.js'
import { values } from '../support/numbers.js'

test('a sample is a function of seed, step and element', () =>
  scope(() => {
    const draw = (seed: number, step: number) => Array.from(values(rand([8], { generator: new Generator(seed, step) })))
    expect(draw(7, 3)).toEqual(draw(7, 3))
    expect(draw(7, 4)).not.toEqual(draw(7, 3))
    expect(draw(8, 3)).not.toEqual(draw(7, 3))
    expect(draw(7 + 2 ** 32, 3)).not.toEqual(draw(7, 3))
    expect(draw(7, 3 + 2 ** 32)).not.toEqual(draw(7, 3))
  }))

test('each sampled tensor advances one step; after the last the stream starts again', () =>
  scope(() => {
    const last = Number.MAX_SAFE_INTEGER
    const generator = new Generator(5, last - 1)
    const drawn = [last - 1, last, 0, 1].map((step) => {
      expect([generator.seed, generator.step]).toEqual([5, step])
      return Array.from(values(rand([4], { generator })))
    })
    const again = new Generator(5)
    expect(Array.from(values(rand([4], { generator: again })))).toEqual(drawn[2])
    expect(new Set(drawn.flat()).size).toBe(16)
  }))

test('routing advances one step per sampled tensor, and none for given numbers', () =>
  scope(() => {
    const [x, w] = [randn([2, 6, 4]), randn([3, 4])]
    const given = { uniforms: rand([2, 2, 6]), gumbelUniforms: rand([2, 6, 3]) }
    const { uniforms, gumbelUniforms } = given
    const steps = (options: object) => {
      const generator = new Generator(5)
      ops.route(x, w, { ...options, generator })
      return generator.step
    }
    expect([steps({}), steps({ uniforms })]).toEqual([1, 0])
    expect([steps({ noiseGates: true }), steps({ noiseGates: true, uniforms })]).toEqual([2, 1])
    expect([steps({ noiseGates: true, gumbelUniforms }), steps({ noiseGates: true, ...given })]).toEqual([1, 0])
  }))

test('an asynchronous call whose function throws after it sampled leaves the default generator as it was', async () => {
  const moe = new MoE({ dim: 4, numExperts: 2 })
  const x = randn([1, 6, 4])
  const dropout = new Dropout(0.5)
  const error = new Error('mine')
  const samples: Record<string, () => unknown> = {
    routing: () => moe.forward(x),
    dropout: () => dropout.forward(x),
    randn: () => randn([2]),
    seed: () => manualSeed(9),
  }
  const before = defaultGenerator.toJSON()
  for (const [name, sample] of Object.entries(samples)) {
    const fails = trainStepAsync(() => {
      sample()
      throw error
    })
    await expect(fails, name).rejects.toBe(error)
    expect(defaultGenerator.toJSON(), name).toEqual(before)
  }
  await expect(trainStepAsync(() => [moe.forward(x), x.add(randn([5]))])).rejects.toThrow(/\[add\]/)
  await expect(moe.forwardAsync(x, { mask: ones([3]) })).rejects.toThrow(/mask/)
  await expect(trainStepAsync(async () => randn([2]))).rejects.toThrow(/async/)
  expect(defaultGenerator.toJSON()).toEqual(before)
  ;(await trainStepAsync(() => randn([2]))).dispose()
  expect(defaultGenerator.step).toBe(before.step + 1)
  for (const owned of [moe, x]) owned.dispose()
})
