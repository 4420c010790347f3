import { describe, expect, test } from 'vitest'
import {
  type Device,
  getDefaultDevice,
  Linear,
  MoE,
  type MoEOptions,
  manualSeed,
  ops,
  randn,
  scope,
  tensor,
} from '../../lib/index.js'
import { listOf, relativeError } from '../support/numbers.js'

describe('dropless', () => {
  const run = (options: Partial<MoEOptions>, user: boolean) => {
    manualSeed(3)
    const experts = user ? { experts: [0, 1, 2, 3].map(() => new Linear(8, 8)) } : { numExperts: 4 }
    const moe = new MoE({ dim: 8, ...experts, gatingTopN: 3, ...options })
    const x = randn([2, 33, 8])
    x.requiresGrad = true
    const mask = tensor(Array.from({ length: 2 }, () => Array.from({ length: 33 }, (_, n) => Number(n % 7 !== 3))))
    const result = moe.forward(x, { mask })
    result.outputs.square().mean().add(result.totalAuxLoss).backward()
    const grads = [x.grad!, ...Array.from(moe.parameters(), (parameter) => parameter.grad!)]
    const { capacity, kept, position } = result.routing
    const routing = { capacity, kept: listOf(kept), position: listOf(position) }
    return { ...routing, tensors: [...result, ...grads].map(listOf) }
  }

  test('180 experts that nearly all have tokens are those of the CPU', () => {
    const run = (device: Device) =>
      scope(() => {
        manualSeed(6)
        const options = {
          dim: 24,
          numExperts: 180,
          expertHiddenDim: 3,
          dropless: true,
          thresholdTrain: 0,
          dtype: 'f64',
        } as const
        const moe = new MoE({ ...options, device })
        const x = randn([1, 900, 24], { dtype: 'f64', device, requiresGrad: true })
        const { outputs, stats } = moe.forward(x, { stats: true })
        outputs.square().sum().backward()
        expect(stats!.keptPerExpert.filter((kept) => kept > 0).length).toBeGreaterThan(160)
        return [outputs, x.grad!, ...Array.from(moe.experts.parameters(), ({ grad }) => grad!)].map(listOf)
      })
    const [here, cpu] = [run(getDefaultDevice()), run('cpu')]
    for (const [i, values] of here.entries()) expect(relativeError(values, cpu[i])).toBeLessThan(1e-12)
  })

  test.each([false, true])('equals unlimited capacity bit for bit, with custom experts: %s', (user) => {
    const dropless = run({ dropless: true, thresholdTrain: 0 }, user)
    expect(dropless).toEqual(run({ capacityFactorTrain: 4, thresholdTrain: 0 }, user))
    expect(dropless.capacity).toBe(33)
    expect(dropless.kept.filter((kept) => kept === 0)).toHaveLength(2 * 5 * 3) // padding alone
    expect(run({ capacityFactorTrain: 0.5, thresholdTrain: 0 }, user).kept.filter(Boolean)).toHaveLength(2 * 4 * 4)
  })

  test('uses a second expert by its threshold, and does not change short sequences', () => {
    expect(run({ dropless: true }, false)).toEqual(run({ capacityFactorTrain: 4 }, false))
    const moe = new MoE({ dim: 4, numExperts: 2, dropless: true })
    expect(moe.forward(randn([1, 2, 4])).routing.capacity).toBe(2)
    expect(moe.forward(randn([3, 0, 4])).outputs.shape).toEqual([3, 0, 4])
    expect(moe.eval().forward(randn([1, 50, 4])).routing.capacity).toBe(50)
  })
})

test('experts follow a routing that was changed in place', () =>
  scope(() => {
    const D = 4
    const experts = new MoE({ dim: D, numExperts: 2, gatingTopN: 1 }).experts as unknown as ops.ExpertWeights
    const x = tensor(
      Float32Array.from({ length: 4 * D }, (_, i) => (i % D === 0 ? (-1) ** Math.floor(i / D) : i / 50)),
      [1, 4, D],
    )
    const first = Float32Array.from({ length: 2 * D }, (_, i) => (i === 0 ? 1 : i === D ? -1 : 0))
    const routing = ops.route(x, tensor(first, [2, D]), { topN: 1, capacity: 3, training: false })
    expect(listOf(routing.expertIndex)).toEqual([0, 1, 0, 1])
    const before = listOf(ops.expertFfn(x, routing, experts))
    routing.expertIndex.copyFrom(Int32Array.of(1, 0, 1, 0))
    const after = listOf(ops.expertFfn(x, routing, experts))
    expect(after).not.toEqual(before)
    expect(after).toEqual(listOf(ops.expertFfn(x, { ...routing, position: routing.position.clone() }, experts)))
  }))
