import { describe, expect, test } from 'vitest'
import {
  getNumThreads,
  type Module,
  manualSeed,
  noGrad,
  ones,
  ops,
  rand,
  randn,
  SoftMoE,
  type SoftMoEOptions,
  scope,
  setNumThreads,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { expectNoLeak } from '../support/baseline.js'
import { settled } from '../support/faults.js'
import { relativeError, values } from '../support/numbers.js'
import { bits, generator, layerOf, normal } from '../support/soft-moe-layer.js'
import { softMoEReference } from '../support/soft-moe-reference.js'

// test/python/answers.test.ts compares with the package, gradcheck.test.ts checks gradients; the rest of the layer's contract is here.

const rowsOf = (y: Tensor, rows: readonly number[]): number[] => {
  const D = y.shape[y.shape.length - 1]
  return rows.flatMap((row) => bits(y).slice(row * D, (row + 1) * D))
}

describe('values', () => {
  const variants: Partial<SoftMoEOptions>[] = [
    {},
    { geglu: true },
    { useLayerNorm: true },
    { geglu: true, useLayerNorm: true, numExperts: 1, numSlots: 5 },
    { numExperts: 7, numSlots: 1, expertMult: 1.3 },
  ]
  const forms = [
    [2, 9, 8],
    [1, 1, 8],
    [5, 8],
    [2, 8, 3, 4],
  ]
  for (const dtype of ['f64', 'f32'] as const)
    test.each(variants)(`equal plain loops: ${dtype} %j`, (options) => {
      for (const shape of forms)
        for (const padded of [false, true])
          scope(() => {
            using layer = layerOf({ ...options, dtype })
            const x = normal(shape, dtype)
            const [B, N] = shape.length === 3 ? shape : [shape[0], shape.length === 2 ? 1 : shape[2] * shape[3]]
            const uniforms = rand([B, N, layer.numExperts, layer.numSlots], { generator })
            const mask = tensor(
              Float32Array.from({ length: B * N }, (_, i) => Number(i % N === 0 || i % 4 !== 1)),
              [B, N],
            )
            const given = { mask, addNoise: true, noiseMult: 0.7, random: { gumbelUniforms: uniforms } }
            const y = layer.forward(x, padded ? given : {})
            const expected = softMoEReference(layer, x, padded ? { mask, uniforms, noiseMult: 0.7 } : {})
            expect(y.shape).toEqual(shape)
            expect(relativeError(values(y), expected), `${shape} ${padded}`).toBeLessThan(
              dtype === 'f64' ? 1e-13 : 2e-6,
            )
          })
    })

  test('no tokens, no sequences', () =>
    scope(() => {
      const layer = layerOf()
      for (const shape of [
        [2, 0, 8],
        [0, 5, 8],
        [0, 8],
        [2, 8, 0, 4],
      ])
        for (const mask of [undefined, ones([shape[0], shape.length === 3 ? shape[1] : shape.length === 2 ? 1 : 0])]) {
          const x = zeros(shape, { requiresGrad: true })
          const y = layer.forward(x, { mask, addNoise: true })
          y.sum().backward()
          expect([y.shape, x.grad?.shape]).toEqual([shape, shape])
        }
    }))

  test('rows are sequences of one token, and an image is a sequence of its pixels', () =>
    scope(() => {
      const layer = layerOf()
      const rows = normal([5, 8])
      expect(bits(layer.forward(rows))).toEqual(bits(layer.forward(rows.reshape([5, 1, 8]))))
      const image = normal([2, 8, 3, 4])
      const pixels = image.reshape([2, 8, 12]).transpose()
      expect(bits(layer.forward(image))).toEqual(bits(layer.forward(pixels).transpose()))
    }))
})

describe('mask', () => {
  /** Output, gradient of x and of all parameters for an x whose padding has been filled. */
  const results = (layer: SoftMoE, x: Tensor, padding: readonly number[], fill: number, dy: Tensor) => {
    const [B, N, D] = x.shape
    const data = Float32Array.from(values(x))
    const mask = Float32Array.from({ length: B * N }, (_, i) => Number(!padding.includes(i)))
    for (const row of padding) data.fill(fill, row * D, (row + 1) * D)
    const filled = tensor(data, x.shape, { requiresGrad: true })
    layer.zeroGrad()
    const y = layer.forward(filled, { mask: tensor(mask, [B, N]) })
    y.backward(dy)
    return { y, dx: filled.grad!, grads: Object.values(layer.gradDict()).map(bits) }
  }
  const padding = [2, 5, 6, 9]

  test.each([{}, { geglu: true, useLayerNorm: true }])('nothing of the rows of padding gets out: %j', (options) =>
    scope(() => {
      const layer = layerOf(options)
      const [x, dy] = [normal([2, 7, 8]), normal([2, 7, 8])]
      const plain = results(layer, x, padding, 0, dy)
      expect(rowsOf(plain.dx, padding).every((v) => v === 0)).toBe(true)
      for (const fill of [1e3, NaN, Infinity]) {
        const { y, dx, grads } = results(layer, x, padding, fill, dy)
        expect([bits(y), bits(dx), grads], String(fill)).toEqual([bits(plain.y), bits(plain.dx), plain.grads])
      }
    }),
  )

  test('padding at the end is as if it were not there, and gets the mean of the slots', () =>
    scope(() => {
      const layer = layerOf({ dtype: 'f64' })
      const [x, mask] = [normal([1, 7, 8], 'f64'), tensor([[1, 1, 1, 1, 1, 0, 0]])]
      const y = layer.forward(x, { mask })
      expect(relativeError(rowsOf(y, [0, 1, 2, 3, 4]), bits(layer.forward(x.slice(1, 0, 5))))).toBeLessThan(1e-14)
      expect(rowsOf(y, [5])).toEqual(rowsOf(y, [6]))
      const noisy = layer.forward(x, { mask, addNoise: true })
      expect(rowsOf(noisy, [5])).toEqual(rowsOf(noisy, [6]))
    }))

  test('a sequence of padding alone is finite and has no gradient', () =>
    scope(() => {
      const layer = layerOf()
      const x = tensor(new Float32Array(2 * 3 * 8).fill(NaN, 24), [2, 3, 8], { requiresGrad: true })
      const mask = tensor([
        [1, 1, 0],
        [0, 0, 0],
      ])
      const y = layer.forward(x, { mask, addNoise: true })
      y.square().sum().backward()
      expect([...bits(y), ...bits(x.grad!)].every(Number.isFinite)).toBe(true)
      expect(rowsOf(x.grad!.reshape([6, 8]), [2, 3, 4, 5]).every((v) => v === 0)).toBe(true)
    }))

  test('a NaN in the mask is an error, and a mask of ones changes nothing', () =>
    scope(() => {
      const layer = layerOf()
      const x = normal([2, 3, 8])
      expect(bits(layer.forward(x, { mask: ones([2, 3]) }))).toEqual(bits(layer.forward(x)))
      const mask = tensor([1, NaN, 1, 1, 1, 1], [2, 3])
      expect(() => settled(() => layer.forward(x, { mask }))).toThrow(expect.objectContaining({ code: 'NON_FINITE' }))
    }))
})

test('S is numSlots, or trunc(seqLen / numExperts)', () => {
  const slots = (options: object) => {
    using layer = new SoftMoE({ dim: 4, ...options } as SoftMoEOptions)
    return [layer.numExperts, layer.numSlots, layer.slotEmbeds.shape]
  }
  expect(slots({ numSlots: 3 })).toEqual([4, 3, [4, 3, 4]])
  expect(slots({ seqLen: 23 })).toEqual([4, 5, [4, 5, 4]])
  expect(slots({ seqLen: 23, numExperts: 6 })).toEqual([6, 3, [6, 3, 4]])
})

describe('state', () => {
  const namesOf = (layer: Module): string[] =>
    scope(() => Object.entries(layer.stateDict()).map(([name, { shape }]) => `${name} [${shape}]`))
  const expert = (i: number, P: number, H: number) => [
    `experts.experts.${i}.0.weight [${P},6]`,
    `experts.experts.${i}.0.bias [${P}]`,
    `experts.experts.${i}.3.weight [6,${H}]`,
    `experts.experts.${i}.3.bias [6]`,
  ]

  test('names and shapes are those of the package', () => {
    const options = { dim: 6, numExperts: 2, numSlots: 3 }
    const [first, second] = ['slot_embeds [2,3,6]', 'norm.gamma [6]']
    const experts = [...expert(0, 24, 24), ...expert(1, 24, 24)]
    expect(namesOf(new SoftMoE(options))).toEqual([first, second, 'slot_norm.gamma [6]', ...experts])
    const layer = new SoftMoE({ ...options, geglu: true, useLayerNorm: true })
    const norms = ['norm.gamma [6]', 'norm.beta [6]', 'slot_norm.gamma [6]', 'slot_norm.beta [6]']
    expect(namesOf(layer)).toEqual([first, ...norms, ...expert(0, 32, 16), ...expert(1, 32, 16)])
    expect([...layer.namedParameters()].map(([name]) => name).join()).toBe(
      'slot_embeds,norm.gamma,slot_norm.gamma,experts.w1,experts.b1,experts.w2,experts.b2',
    )
  })

  test('moves from layer to layer', () =>
    scope(() => {
      const options = { geglu: true, useLayerNorm: true }
      const [first, second] = [layerOf(options), layerOf(options)]
      const x = normal([2, 5, 8])
      expect(bits(second.forward(x))).not.toEqual(bits(first.forward(x)))
      second.loadStateDict(first.stateDict())
      expect(bits(second.forward(x))).toEqual(bits(first.forward(x)))
    }))

  test('first values: slots standard normal, linear maps as in PyTorch, gamma 1 and beta 0', () => {
    const layer = new SoftMoE({ dim: 40, numSlots: 30, useLayerNorm: true })
    const { slotEmbeds, experts } = layer
    const square = (list: number[]) => list.reduce((sum, v) => sum + v * v, 0) / list.length
    expect(square(bits(slotEmbeds))).toBeCloseTo(1, 1)
    const { w1, b1, w2, b2 } = experts
    for (const [parameter, bound] of [
      [w1, 40 ** -0.5],
      [b1, 40 ** -0.5],
      [w2, 160 ** -0.5],
      [b2, 160 ** -0.5],
    ] as const) {
      const largest = Math.max(...bits(parameter).map(Math.abs))
      expect(largest).toBeLessThanOrEqual(bound)
      expect(largest).toBeGreaterThan(0.95 * bound)
    }
    const state = layer.stateDict()
    for (const norm of ['norm', 'slot_norm']) {
      expect(bits(state[`${norm}.gamma`])).toEqual(Array(40).fill(1))
      expect(bits(state[`${norm}.beta`])).toEqual(Array(40).fill(0))
    }
  })
})

test.each([
  ['bf16', 2 ** -9],
  ['f16', 2 ** -12],
] as const)('%s GEMMs of the experts', (computeDtype, rounding) =>
  scope(() => {
    for (const geglu of [false, true]) {
      const exact = layerOf({ dtype: 'f64', geglu })
      const layer = layerOf({ computeDtype, geglu })
      layer.loadStateDict(exact.stateDict())
      expect(layer.experts.computeDtype).toBe(computeDtype)
      const [x, dy] = [normal([2, 9, 8]), normal([2, 9, 8])]
      const run = (own: SoftMoE) => {
        const input = x.to(own.slotEmbeds.dtype)
        input.requiresGrad = true
        const y = own.forward(input)
        y.backward(dy.to(y.dtype))
        return [y, input.grad!, ...Object.values(own.gradDict())].map(values)
      }
      const expected = run(exact)
      for (const [i, got] of run(layer).entries()) {
        const error = relativeError(got, expected[i])
        expect(error).toBeLessThan((i === 0 ? 12 : 24) * rounding)
        expect(error).toBeGreaterThan(i === 0 ? rounding / 100 : 0)
      }
    }
  }),
)

test('the same bits on 1, 2 and 3 threads', () => {
  const threads = getNumThreads()
  const runs = [1, 2, 3].map((count) =>
    scope(() => {
      setNumThreads(count)
      manualSeed(6)
      const layer = new SoftMoE({ dim: 48, numExperts: 5, numSlots: 7, dropout: 0.1 })
      const x = randn([3, 70, 48], { requiresGrad: true })
      const y = layer.forward(x, { addNoise: true, mask: rand([3, 70]).sub(0.2).relu() })
      y.square().mean().backward()
      return [y, x.grad!, ...Object.values(layer.gradDict())].map(bits)
    }),
  )
  setNumThreads(threads)
  expect(runs[1]).toEqual(runs[0])
  expect(runs[2]).toEqual(runs[0])
})

test('a step leaves nothing behind', () => {
  for (const options of [{}, { geglu: true, useLayerNorm: true, dropout: 0.2 }]) {
    using layer = layerOf(options)
    const step = () =>
      scope(() => {
        const x = randn([2, 5, 8], { requiresGrad: true })
        layer
          .forward(x, { addNoise: true, mask: ones([2, 5]) })
          .sum()
          .backward()
        layer.zeroGrad()
      })
    step()
    expectNoLeak(step)
    using x = zeros([2, 5, 8])
    expectNoLeak(() => noGrad(() => layer.forward(x)).dispose())
  }
  expectNoLeak(() => layerOf({ useLayerNorm: true }).dispose())
})

test('experts without a routing: x [E, ..., D] equals each expert alone', () =>
  scope(() => {
    const [E, D, H] = [3, 5, 4]
    const weights = { w1: normal([E, H, D]), b1: normal([E, H]), w2: normal([E, D, H]), b2: normal([E, D]) }
    const x = normal([E, 2, 3, D])
    const y = ops.expertFfn(x, null, weights, { activation: 'gelu' })
    for (let e = 0; e < E; e++) {
      const own = Object.entries(weights).map(([name, value]) => [name, value.slice(0, e, e + 1)])
      const alone = ops.expertFfn(x.slice(0, e, e + 1), null, Object.fromEntries(own), { activation: 'gelu' })
      expect(relativeError(bits(y.slice(0, e, e + 1)), bits(alone))).toBeLessThan(1e-6)
    }
  }))
