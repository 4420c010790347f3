import { expect, test } from 'vitest'
import {
  type DType,
  getDefaultDevice,
  MoE,
  type MoEForwardOptions,
  ops,
  randn,
  scope,
  tensor,
} from '../../lib/index.js'
import { settled } from '../support/faults.js'
import { Draw, runSeed, values } from '../support/numbers.js'

// What a mask says: 0 is padding, any other number is a token, and a NaN is a mistake.

const seed = runSeed()
const dtypes: readonly DType[] = ['f32', 'f64', 'bf16', 'f16', 'i32']
const entries = [0, 0, -0, 1, -1, 0.5, -0.25, 1e-3, 2 ** -24, 3e4, Infinity, -Infinity]

test(`a mask entry other than 0 is a token, whatever the dtype (seed ${seed})`, () => {
  const draw = new Draw(seed)
  for (let round = 0; round < 40; round++) {
    scope(() => {
      const [B, N, D, E] = [draw.integer(1, 3), draw.integer(1, 9), 4, draw.integer(2, 5)]
      const dtype = draw.of(dtypes)
      const shown = draw.array(B * N, () => draw.of(dtype === 'i32' ? [0, 1, -1, 7, -(2 ** 31)] : entries))
      const mask = tensor(shown, [B, N], { dtype: 'f64' }).to(dtype)
      const plain = Int32Array.from(values(mask.to('f64')), (entry) => Number(entry !== 0))
      const moe = new MoE({ dim: D, numExperts: E })
      const random = { uniforms: tensor(new Float32Array(2 * B * N).fill(0.1), [2, B, N]) }
      const data = randn([B, N, D])
      const [given, wanted] = [mask, tensor(plain, [B, N])].map((mask) => {
        moe.zeroGrad()
        const x = data.clone()
        x.requiresGrad = true
        const result = moe.forward(x, { random, mask, stats: true })
        result.outputs.square().sum().add(result.totalAuxLoss.mul(100)).backward()
        const { expertIndex, gate, kept, position } = result.routing
        const losses = [result.outputs, result.balanceLoss, result.routerZLoss]
        const grads = [x.grad!, moe.gate.toGates.weight.grad!]
        return { stats: result.stats, numbers: [expertIndex, gate, kept, position, ...losses, ...grads].map(values) }
      })
      expect(given, `${dtype} [${shown.join()}]`).toEqual(wanted)
    })
  }
})

test.each(dtypes.filter((dtype) => dtype !== 'i32'))('a NaN in a mask of %s is an error', (dtype) =>
  scope(() => {
    const moe = new MoE({ dim: 4, numExperts: 2 })
    const mask = tensor([1, 0, NaN, 1]).reshape([1, 4]).to(dtype)
    const forward = () => settled(() => moe.forward(randn([1, 4, 4]), { mask }))
    expect(forward).toThrow(expect.objectContaining({ code: 'NON_FINITE' }))
    expect(forward).toThrow(/^\[(route|toData)\] mask must be 0 for padding and another number for a token, got NaN/)
    expect(() => settled(() => moe.forward(randn([1, 4, 4])))).not.toThrow()
  }),
)

test('a mask may come from the host', () =>
  scope(() => {
    const moe = new MoE({ dim: 4, numExperts: 2 })
    const host = tensor([[0, 0.5, 1]], null, { device: 'cpu' })
    expect(moe.forward(randn([1, 3, 4]), { mask: host }).routing.mask?.device).toBe(
      ops.to(host, getDefaultDevice()).device,
    )
  }))

const statsOf = (options: MoEForwardOptions, N = 16) =>
  scope(() => {
    const moe = new MoE({ dim: 8, numExperts: 2, gatingTopN: 1, capacityFactorTrain: 4 })
    return moe.forward(randn([1, N, 8]), { ...options, stats: true }).stats!
  })

test('counts exclude padding', () => {
  const mask = tensor([...Array(8).fill(1), ...Array(8).fill(0)], [1, 16])
  const stats = statsOf({ mask })
  expect(stats.droppedTokens).toBe(0)
  expect(stats.firstChoicePerExpert.reduce((a, b) => a + b)).toBe(8)
  expect(stats.keptPerExpert.reduce((a, b) => a + b)).toBe(8)
  expect(stats.slotOccupancy).toBe(8 / 32)
  mask.dispose()
})

test('the dropped fraction is relative to the tokens', () =>
  scope(() => {
    const moe = new MoE({ dim: 8, numExperts: 1, gatingTopN: 1, capacityFactorTrain: 0.1 })
    const mask = tensor([...Array(8).fill(1), ...Array(8).fill(0)], [1, 16])
    expect(moe.forward(randn([1, 16, 8]), { mask, stats: true }).stats?.droppedTokens).toBe(0.5) // 4 slots, 8 tokens
    expect(statsOf({ mask: tensor(new Float32Array(16), [1, 16]) })).toEqual({
      keptPerExpert: [0, 0],
      firstChoicePerExpert: [0, 0],
      droppedTokens: 0,
      droppedPerChoice: [0],
      slotOccupancy: 0,
      routerEntropy: 0,
      routerConfidence: 0,
      logitNorm: 0,
    })
  }))
