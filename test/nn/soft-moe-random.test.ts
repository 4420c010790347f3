import { describe, expect, test } from 'vitest'
import {
  defaultGenerator,
  manualSeed,
  rand,
  type SoftMoE,
  type SoftMoEForwardOptions,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { relativeError } from '../support/numbers.js'
import { bits, layerOf, normal } from '../support/soft-moe-layer.js'
import { softMoEReference } from '../support/soft-moe-reference.js'

// Noise and dropout of SoftMoE; soft-moe.test.ts has the rest.

describe('noise', () => {
  const run = (layer: SoftMoE, x: Tensor, options: SoftMoEForwardOptions) => bits(layer.forward(x, options))

  test('is that of the seed, also in evaluation, and scaled by noiseMult', () =>
    scope(() => {
      const layer = layerOf()
      const x = normal([2, 5, 8])
      const noisy = (options: SoftMoEForwardOptions) => {
        manualSeed(4)
        return run(layer, x, { addNoise: true, ...options })
      }
      const first = noisy({})
      expect(noisy({})).toEqual(first)
      expect(run(layer, x, { addNoise: true })).not.toEqual(first)
      expect(run(layer.eval(), x, {})).not.toEqual(first)
      expect(noisy({})).toEqual(first)
      expect(noisy({ noiseMult: 0 })).toEqual(run(layer, x, {}))
      manualSeed(4)
      const gumbelUniforms = rand([2, 5, 3, 2])
      expect(run(layer, x, { addNoise: true, random: { gumbelUniforms } })).toEqual(first)
    }))

  test('f32 and f64 draw the same noise', () =>
    scope(() => {
      const [single, double] = (['f32', 'f64'] as const).map((dtype) => layerOf({ dtype }))
      double.loadStateDict(
        Object.fromEntries(Object.entries(single.stateDict()).map(([name, x]) => [name, x.to('f64')])),
      )
      const x = normal([2, 5, 8])
      const noisy = (layer: SoftMoE, x: Tensor) => {
        manualSeed(4)
        return run(layer, x, { addNoise: true })
      }
      expect(relativeError(noisy(single, x), noisy(double, x.to('f64')))).toBeLessThan(1e-6)
    }))

  test('uniforms of 0 and 1 are finite, as in the package', () =>
    scope(() => {
      for (const dtype of ['f32', 'f64'] as const) {
        const layer = layerOf({ dtype })
        const uniforms = tensor([0, 1, 0.5, 0, 1, 0.5], [1, 1, 3, 2])
        const x = normal([1, 1, 8], dtype)
        const y = run(layer, x, { addNoise: true, random: { gumbelUniforms: uniforms } })
        expect(relativeError(y, softMoEReference(layer, x, { uniforms, noiseMult: 1 }))).toBeLessThan(1e-5)
      }
    }))

  test('a forward that throws does not advance the generator', () => {
    const layer = layerOf()
    const random = { gumbelUniforms: zeros([1]) }
    const before = defaultGenerator.toJSON()
    expect(() => scope(() => layer.forward(zeros([1, 2, 8]), { addNoise: true, random }))).toThrow(/gumbelUniforms/)
    expect(defaultGenerator.toJSON()).toEqual(before)
    random.gumbelUniforms.dispose()
  })
})

describe('dropout', () => {
  test.each([false, true])('of next to nothing is the fused layer, in evaluation it is off: geglu %s', (geglu) =>
    scope(() => {
      for (const computeDtype of ['f32', 'bf16'] as const) {
        const plain = layerOf({ geglu, computeDtype })
        const build = (dropout: number): SoftMoE => {
          const layer = layerOf({ geglu, computeDtype, dropout })
          layer.loadStateDict(plain.stateDict())
          return layer
        }
        const x = normal([2, 6, 8])
        const expected = bits(plain.forward(x))
        const error = relativeError(bits(build(1e-12).forward(x)), expected)
        expect(error).toBeLessThan(computeDtype === 'f32' ? 1e-6 : 12 * 2 ** -9)
        expect(bits(build(0.5).eval().forward(x))).toEqual(expected)
        expect(relativeError(bits(build(0.5).forward(x)), expected)).toBeGreaterThan(0.01)
      }
    }),
  )

  test('keeps the mean of the outputs of a linear second map', () =>
    scope(() => {
      const layer = layerOf({ dropout: 0.4 })
      const x = normal([1, 6, 8])
      const expected = bits(layer.eval().forward(x))
      layer.train()
      const runs = Array.from({ length: 3000 }, () => scope(() => bits(layer.forward(x))))
      const mean = expected.map((_, i) => runs.reduce((sum, y) => sum + y[i], 0) / runs.length)
      expect(relativeError(mean, expected)).toBeLessThan(0.05)
    }))
})
