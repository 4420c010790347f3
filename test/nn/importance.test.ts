import { expect, test } from 'vitest'
import { MoE, ops, randn, tensor } from '../../lib/index.js'
import { listOf } from '../support/numbers.js'

// What importance does is compared in answers.test.ts and property.test.ts.

const [D, E] = [6, 4]

test('importance 1 is as no importance, and 0 as a mask, but for the means of the losses', () => {
  const moe = new MoE({ dim: D, numExperts: E, thresholdTrain: 0 })
  const x = randn([2, 12, D])
  const run = (options: object) => {
    const { outputs, routing, balanceLoss, routerZLoss } = moe.forward(x, options)
    return { values: [outputs, routing.kept, routing.position, routerZLoss].map(listOf), balance: balanceLoss.item() }
  }
  const ones = tensor(new Float32Array(24).fill(1), [2, 12])
  expect(run({ importance: ones })).toEqual(run({}))
  const some = tensor(Array.from({ length: 2 }, () => Array.from({ length: 12 }, (_, n) => Number(n % 4 > 0))))
  const [masked, weighted] = [run({ mask: some }), run({ importance: some })]
  expect(weighted.values).toEqual(masked.values)
  expect(weighted.balance).toBeCloseTo(masked.balance * 0.75 ** 2, 6)
  expect(listOf(moe.forward(x, { importance: some.mul(0.5) }).routing.mask!)).toEqual(listOf(some))
})

test('numbers outside of 0 to 1, two masks and other shapes are errors', () => {
  const moe = new MoE({ dim: D, numExperts: E })
  const x = randn([1, 4, D])
  const forward = (importance: number[]) => () =>
    moe.forward(x, { importance: tensor([importance]) }).outputs.dataSync()
  for (const bad of [-0.5, 1.5, Number.NaN]) expect(forward([1, 0, bad, 1])).toThrow('importance must be from 0 to 1')
  expect(forward([1, 0])).toThrow('[route] importance must be [1, 4], got [1, 2]')
  expect(forward([1, 0, 0.5, 1])).not.toThrow()
  const both = { mask: tensor([[1, 1, 1, 1]]), importance: tensor([[1, 1, 1, 1]]) }
  const message = 'mask and importance cannot be together: importance 0 is padding'
  expect(() => moe.forward(x, both)).toThrow(message)
  const choice = new MoE({ dim: D, numExperts: E, router: 'expertChoice' })
  expect(() => choice.forward(x, both)).toThrow(message)
  expect(listOf(choice.forward(x, { importance: both.mask }).outputs)).toEqual(listOf(choice.forward(x).outputs))
  const padding = tensor([[0, 1, 0, 1]])
  const masked = listOf(choice.forward(x, { mask: padding }).outputs)
  expect(masked).not.toEqual(listOf(choice.forward(x).outputs))
  expect(listOf(choice.forward(x, { importance: padding }).outputs)).toEqual(masked)
})

test('a router that sees something else', () => {
  const [x, seen] = [randn([2, 8, D]), randn([2, 8, 10], { requiresGrad: true })]
  const moe = new MoE({ dim: D, numExperts: E, routerDim: 10, routerJitter: 0.1, routerBias: true })
  expect(moe.gate.toGates.weight.shape).toEqual([E, 10])
  const { outputs, totalAuxLoss } = moe.forward(x, { routerInput: seen })
  outputs.square().sum().add(totalAuxLoss).backward()
  expect(seen.grad?.shape).toEqual([2, 8, 10])
  expect(() => moe.forward(x)).toThrow('[TopNGating.forward] routerInput is needed, since routerDim is 10')
  expect(() => moe.forward(x, { routerInput: x })).toThrow('routerInput must be [2, 8, 10], got [2, 8, 6]')
  const plain = new MoE({ dim: D, numExperts: E, router: 'expertChoice' })
  const same = plain.forward(x, { routerInput: x })
  expect(listOf(same.outputs)).toEqual(listOf(plain.forward(x).outputs))
  expect(() => plain.forward(x, { routerInput: seen })).toThrow('routerInput must be [2, 8, 6], got [2, 8, 10]')
})

test('injected numbers of the second place are used, and only in training', () => {
  const [x, w] = [randn([2, 8, D]), randn([E, D])]
  const uniforms = tensor(
    Float32Array.from({ length: 16 }, (_, t) => (t % 2 === 0 ? 0.1 : 0.9)),
    [2, 8],
  )
  const route = (options: ops.RouteOptions) =>
    listOf(ops.route(x, w, { topN: 1, secondPlaceProb: 0.5, ...options }).expertIndex)
  const best = route({ training: false })
  const second = listOf(ops.route(x, w, { topN: 2 }).expertIndex).filter((_, i) => i % 2 === 1)
  expect(route({ secondPlaceUniforms: uniforms })).toEqual(best.map((e, t) => (t % 2 === 0 ? second[t] : e)))
  expect(() => route({ secondPlaceUniforms: w })).toThrow(
    `[route] secondPlaceUniforms must be [2, 8], got [${E}, ${D}]`,
  )
})
