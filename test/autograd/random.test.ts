import { expect, test } from 'vitest'
import { Generator, ops, rand, randn, scope } from '../../lib/index.js'
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
