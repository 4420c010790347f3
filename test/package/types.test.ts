import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { Experts, MoE, type MoEResult, randn, scope, type Tensor } from '../../lib/index.js'

// What test/types/consumer.ts says about types, and what has to be so when it runs.

test('a program of a user compiles against the declarations of dist/', () => {
  const script = fileURLToPath(new URL('../../scripts/check-types.mjs', import.meta.url))
  const { status, stdout, stderr } = spawnSync(process.execPath, [script], { encoding: 'utf8' })
  expect(status, stdout + stderr).toBe(0)
}, 120_000)

test('a result is an array of its four tensors, and keeps the rest by name', () =>
  scope(() => {
    const moe = new MoE({ dim: 8, numExperts: 2 })
    const result: MoEResult = scope(() => moe.forward(randn([1, 4, 8])))
    const { outputs, totalAuxLoss, balanceLoss, routerZLoss, routing } = result
    expect([...result]).toEqual([outputs, totalAuxLoss, balanceLoss, routerZLoss])
    expect(result.length).toBe(4)
    expect(Array.isArray(result.map((tensor) => tensor.shape))).toBe(true)
    expect(result.map((tensor) => tensor.shape).constructor).toBe(Array)
    expect(routing.kept.disposed).toBe(false) // the scope has seen what the array holds by name
    moe.registerForwardHook((_module, _args, result: MoEResult) => result.mapTensors((tensor: Tensor) => tensor.mul(2)))
    moe.registerFullBackwardHook(() => {})
    expect(moe.forward(randn([1, 4, 8])).routing.capacity).toBe(4)
  }))

test('Experts needs no options', () =>
  scope(() => {
    const experts = new Experts(3, 8, 5)
    expect([experts.w1.dtype, experts.computeDtype, experts.w2.shape]).toEqual(['f32', 'f32', [3, 8, 5]])
    expect(() => new Experts(3, 8, 5, { bias: true } as never)).toThrow(/\[Experts\] unknown option "bias"/)
    experts.dispose()
  }))
