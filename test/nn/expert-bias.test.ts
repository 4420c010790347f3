import { describe, expect, test } from 'vitest'
import {
  captureStep,
  type Device,
  type ExpertGroups,
  Module,
  MoE,
  type MoEOptions,
  memory,
  randn,
  recompute,
  scope,
  type Tensor,
  type TopNGating,
  tensor,
  trainStepAsync,
} from '../../lib/index.js'
import { useEmulator } from '../support/emulator.js'
import { listOf, values } from '../support/numbers.js'
import { own } from '../support/owned.js'

// The load that updateExpertBias evens out. The GPU is the emulator (npm run build:simt) unless ST_MOE_CUDA_LIBRARY names
// another plugin.

const built = useEmulator()

/** Expert 0 gets the tokens above 0, expert 1 the others. */
function layer(options?: Partial<MoEOptions>): MoE {
  const base = { dim: 1, router: 'switch', scoreFunction: 'sigmoid', expertBias: true, dropless: true } as const
  const moe = own(new MoE({ ...base, ...(options?.experts ? {} : { numExperts: 2 }), ...options }))
  moe.gate.toGates.weight.copyFrom([[1], [-1]])
  return moe
}
/** `first` tokens for expert 0 and `second` for expert 1. */
const tokens = (first: number, second: number, device?: Device): Tensor =>
  own(tensor([[...Array(first).fill([1]), ...Array(second).fill([-1])]], null, { device }))
const biasOf = ({ gate }: MoE): number[] => Array.from(values((gate as TopNGating).expertBias as Tensor))
const forward = (moe: MoE, x: Tensor): void => scope(() => void moe.forward(x))
/** The signs of the bias after an update. */
const signs = (moe: MoE): number[] => {
  moe.updateExpertBias(1)
  return biasOf(moe)
}

describe('the load counts each token of a forward once', () => {
  test('of a layer and of a router alone', () => {
    const moe = layer()
    forward(moe, tokens(3, 0))
    scope(() => moe.gate.forward(tokens(0, 4)))
    expect(signs(moe)).toEqual([1, -1])
  })

  test('that a backward runs again', () => {
    const moe = layer()
    const x = tokens(3, 0)
    x.requiresGrad = true
    scope(() => recompute(moe, [x]).outputs.sum().backward())
    forward(moe, tokens(0, 4))
    expect(signs(moe)).toEqual([1, -1])
  })

  test('and none of a forward that throws', () => {
    let error: Error | null = new Error('mine')
    class Failing extends Module {
      forward(x: Tensor): Tensor {
        if (error) throw error
        return x.clone()
      }
    }
    const moe = layer({ experts: [new Failing(), new Failing()] })
    expect(() => moe.forward(tokens(3, 0))).toThrow('mine')
    error = null
    forward(moe, tokens(0, 2))
    expect(signs(moe)).toEqual([1, -1])
  })

  test('and none of two levels if a group throws', () => {
    const moe = new MoE({ dim: 4, numExperts: [2, 4], expertBias: true })
    const biases = () =>
      Object.entries(moe.stateDict()).flatMap(([name, bias]) => (name.endsWith('expert_bias') ? listOf(bias) : []))
    const { experts } = moe.experts as ExpertGroups
    const hook = experts[1]!.registerForwardHook(() => {
      throw new Error('mine')
    })
    const x = randn([1, 12, 4])
    expect(() => moe.forward(x)).toThrow('mine')
    moe.updateExpertBias(1)
    expect(biases()).toEqual(Array(2 + 2 * 4).fill(0))
    hook.remove()
    moe.forward(x)
    moe.updateExpertBias(1)
    expect(new Set(biases().map(Math.abs))).toContain(1)
    moe.dispose()
  })
})

test('an asynchronous call that fails leaves the layer as it was', async () => {
  const moe = layer()
  const [x, table] = [tokens(0, 2), own(tensor([[1], [1]]))]
  const failing = trainStepAsync(() => {
    const bad = table.indexSelect(0, tensor(Int32Array.of(0, 9, 1))).reshape([1, 3, 1])
    return moe.forward(bad).outputs
  })
  await expect(failing).rejects.toThrow(/got 9/)
  ;(await moe.forwardAsync(x)).dispose()
  expect(signs(moe)).toEqual([1, -1])
})

test('it is no part of the state, takes no memory over steps, and is freed with the layer', () => {
  const before = memory()
  const moe = layer()
  const x = tokens(3, 1)
  const made = memory()
  for (let step = 0; step < 3; step++) {
    forward(moe, x)
    moe.updateExpertBias(0.1)
    expect(memory()).toMatchObject({ tensors: made.tensors, bytes: made.bytes })
  }
  const names = scope(() => Object.keys(moe.gate.stateDict()))
  expect(names).toEqual(['threshold_train', 'threshold_eval', 'expert_bias', 'to_gates.weight'])
  forward(moe, x)
  moe.dispose()
  x.dispose()
  expect(memory()).toMatchObject({ tensors: before.tensors, bytes: before.bytes })
})

describe.skipIf(!built)('on a GPU', () => {
  test('it moves with the layer', () => {
    const moe = layer()
    forward(moe, tokens(5, 0))
    moe.to('cuda')
    forward(moe, tokens(0, 4, 'cuda'))
    expect(signs(moe)).toEqual([-1, 1])
  })

  test.each([false, true])('replays of a captured step add up, after a forward before it: %s', (before) => {
    const run = (captured: boolean) => {
      const moe = layer({ device: 'cuda' })
      const x = tokens(3, 1, 'cuda')
      if (before) forward(moe, x)
      const step = () => moe.forward(x).outputs
      const replay = captured ? own(captureStep(step, { device: 'cuda' })) : { replay: () => scope(() => void step()) }
      const found: number[][] = []
      for (const steps of [[3], [3], [3, 0], [0]]) {
        for (const first of steps) {
          scope(() => x.copyFrom(tokens(first, 4 - first, 'cuda')))
          replay.replay()
        }
        moe.updateExpertBias(0.0625)
        found.push(biasOf(moe))
      }
      return found
    }
    expect(run(true)).toEqual(run(false))
    expect(run(false)).toEqual([
      [-0.0625, 0.0625],
      [-0.125, 0.125],
      [-0.0625, 0.0625],
      [0, 0],
    ])
  })
})
