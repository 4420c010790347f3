import { describe, expect, test } from 'vitest'
import {
  CausalSelfAttention,
  captureStep,
  type Device,
  Dropout,
  defaultGenerator,
  dropout,
  Generator,
  type HookHandle,
  Linear,
  Module,
  MoE,
  MoEMonitor,
  MoEResult,
  manualSeed,
  memory,
  noGrad,
  RMSNorm,
  randn,
  recompute,
  resetPeakMemory,
  SGD,
  SparseMoEBlock,
  scope,
  type Tensor,
  type TopNGating,
  tensor,
} from '../../lib/index.js'
import { useEmulator } from '../support/emulator.js'

const built = useEmulator()
const bits = (x: Tensor): string => Buffer.from(x.dataSync().buffer).toString('hex')

type Call = <A extends unknown[], R>(block: ((...inputs: A) => R) | { forward(...inputs: A): R }, inputs: A) => R
const direct: Call = (block, inputs) => (typeof block === 'function' ? block(...inputs) : block.forward(...inputs))

/** A block with every kind of random number, used in a residual stream and twice in one model. */
class Net extends Module {
  norm = new RMSNorm(8)
  attention = new CausalSelfAttention(8, { heads: 2 })
  drop = new Dropout(0.3)
  block = new SparseMoEBlock(
    new MoE({ dim: 8, numExperts: 4, noiseGates: true, routerJitter: 0.1, routerDropout: 0.1, expertDropout: 0.2 }),
    { addFfBefore: true },
  )
  head = new Linear(8, 8)
  readonly #call: Call
  readonly #inner: Call

  constructor(call: Call, inner: Call) {
    super()
    this.#call = call
    this.#inner = inner
  }

  layer(x: Tensor, scale: Tensor): { y: Tensor; loss: Tensor } {
    const mixed = this.#inner((h: Tensor) => this.drop.forward(this.attention.forward(this.norm.forward(h))), [x])
    const { outputs, totalAuxLoss } = this.block.forward(x.add(mixed))
    return { y: outputs.mul(scale), loss: totalAuxLoss }
  }

  forward(x: Tensor, scale: Tensor): Tensor {
    const first = this.#call((x: Tensor, scale: Tensor) => this.layer(x, scale), [x, scale])
    const middle = first.y.add(x)
    const second = this.#call((x: Tensor, scale: Tensor) => this.layer(x, scale), [middle, scale])
    const out = this.#call(this.head, [second.y.add(middle).add(first.y)])
    return out.square().mean().add(first.loss).add(second.loss)
  }
}

/** Everything that a few steps of training leave. */
function left(call: Call, inner: Call, device?: Device, captured = false): unknown {
  manualSeed(7)
  const net = new Net(call, inner)
  if (device) net.to(device)
  const optimizer = new SGD(net.parameters(), { lr: 0.1 })
  const [x, scale] = [randn([2, 6, 8], { device, requiresGrad: true }), randn([8], { device, requiresGrad: true })]
  const step = () => {
    optimizer.zeroGrad()
    x.grad = scale.grad = null
    const loss = net.forward(x, scale)
    loss.backward()
    if (!captured) net.forward(x, scale).backward() // gradients add up
    optimizer.step()
    return loss
  }
  using replayed = captured ? captureStep(step, { device }) : null
  const losses = [1, 2, 3].map(() => (replayed ? bits(replayed.replay()) : scope(() => bits(step()))))
  const grads = [x, scale, ...net.parameters()].map(({ grad }) => grad && bits(grad))
  return { losses, grads, values: [...net.parameters()].map(bits), samples: defaultGenerator.step }
}

describe('gradients, parameters and generators are those without, bit for bit', () => {
  const plain = left(direct, direct)
  test('of blocks in a residual stream', () => expect(left(recompute, direct)).toEqual(plain))
  test('of parts of blocks', () => expect(left(direct, recompute)).toEqual(plain))
  test('of blocks in blocks', () => expect(left(recompute, recompute)).toEqual(plain))
  test.skipIf(!built)('in a captured step', () => {
    expect(left(recompute, recompute, 'cuda', true)).toEqual(left(direct, direct, 'cuda', true))
  })
})

test('a module that returns a MoEResult, with options', () => {
  const run = (call: Call) => {
    manualSeed(3)
    const moe = new MoE({ dim: 8, numExperts: 4 })
    const x = randn([2, 6, 8], { requiresGrad: true })
    const mask = tensor([
      [1, 1, 1, 1, 1, 0],
      [1, 1, 0, 0, 0, 0],
    ])
    const result = call(moe, [x, { mask, stats: true }])
    mask.dispose()
    expect(result).toBeInstanceOf(MoEResult)
    expect(result.stats).toBeDefined()
    if (call === recompute) expect(result.routing.weight.requiresGrad).toBe(false)
    result.outputs.square().sum().add(result.totalAuxLoss).backward()
    return [result.outputs, x.grad!, ...[...moe.parameters()].map(({ grad }) => grad!)].map(bits)
  }
  expect(scope(() => run(recompute))).toEqual(scope(() => run(direct)))
})

test('a block with parameters alone, and one whose inputs need no gradient', () =>
  scope(() => {
    const layer = new Linear(3, 2)
    const x = randn([4, 3])
    const grads = (call: Call) => {
      layer.zeroGrad()
      const y = call(() => layer.forward(x), [])
      expect(y.requiresGrad).toBe(true)
      y.add(call(layer, [x]))
        .square()
        .sum()
        .backward()
      return [...layer.parameters()].map(({ grad }) => bits(grad!))
    }
    expect(grads(recompute)).toEqual(grads(direct))
    expect(recompute((a: Tensor) => a.mul(2), [x]).requiresGrad).toBe(false)
    expect(noGrad(() => recompute(layer, [x])).requiresGrad).toBe(false)
  }))

test('random numbers of any generator, which advance once', () =>
  scope(() => {
    const run = (call: Call) => {
      const generator = new Generator(5)
      manualSeed(1)
      const x = randn([4], { requiresGrad: true })
      const y = call((x: Tensor) => dropout(x.mul(randn([4], { generator })), 0.5).mul(randn([4])), [x])
      randn([3], { generator })
      randn([3])
      y.sum().backward()
      return [bits(y), bits(x.grad!), generator.step, defaultGenerator.step]
    }
    expect(run(recompute)).toEqual(run(direct))
  }))

test('what an input returns, and an input that another block made', () =>
  scope(() => {
    const grads = (call: Call) => {
      const x = tensor([1, 2, 3], null, { requiresGrad: true })
      const h = x.mul(x)
      const { same, twice, list } = call((h: Tensor) => ({ same: h, twice: h.mul(2), list: [h.mul(h), 7] }), [h])
      same
        .add(twice)
        .add(list[0] as Tensor)
        .sum()
        .backward()
      return bits(x.grad!)
    }
    expect(grads(recompute)).toBe(grads(direct))
  }))

test('what a block uses besides its inputs', () =>
  scope(() => {
    const grads = (call: Call, inner: Call) => {
      const x = tensor([1, 2, 3], null, { requiresGrad: true })
      const h = x.mul(x)
      h.registerHook((grad) => grad.mul(3))
      const y = call((a: Tensor) => inner(() => h.mul(a), []), [tensor([4, 5, 6])])
      expect(y.requiresGrad).toBe(true)
      y.add(h).sum().backward()
      return bits(x.grad!)
    }
    const plain = grads(direct, direct)
    expect(grads(recompute, direct)).toBe(plain)
    expect(grads(direct, recompute)).toBe(plain)
    expect(grads(recompute, recompute)).toBe(plain)
  }))

test('a result that contains itself', () =>
  scope(() => {
    const x = tensor([1, 2], null, { requiresGrad: true })
    const result = recompute(
      (x: Tensor) => {
        const result = { y: x.mul(2), all: [] as unknown[] }
        result.all.push(result)
        return result
      },
      [x],
    )
    expect(result.all[0]).toBe(result)
    result.y.sum().backward()
    expect(Array.from(x.grad!.dataSync())).toEqual([2, 2])
  }))

test('a graph that is kept runs again as often as it is asked to', () =>
  scope(() => {
    const x = tensor([1, 2], null, { requiresGrad: true })
    const y = recompute((x: Tensor) => dropout(x.mul(x), 0.5), [x]).sum()
    y.backward(null, { retainGraph: true })
    const once = Array.from(x.grad!.dataSync())
    y.backward()
    expect(Array.from(x.grad!.dataSync())).toEqual(once.map((v) => 2 * v))
    expect(() => y.backward()).toThrow(/graph of (sum|reduce|recompute).* has been freed/)
  }))

describe('memory', () => {
  class Deep extends Module {
    layers = Array.from({ length: 6 }, () => new Linear(64, 64))
    readonly #call: Call
    constructor(call: Call) {
      super()
      this.#call = call
    }
    forward(x: Tensor): Tensor {
      const block = (layer: Linear) => (x: Tensor) => layer.forward(x).gelu().mul(x).tanh().square()
      return this.layers.reduce((x, layer) => this.#call(block(layer), [x]), x)
    }
  }
  const peak = (call: Call) => {
    using net = new Deep(call)
    using x = randn([2000, 64])
    const step = () => scope(() => net.forward(x).mean().backward())
    step()
    const before = memory()
    resetPeakMemory()
    step()
    const after = memory()
    expect([after.tensors, after.bytes]).toEqual([before.tensors, before.bytes])
    return after.peakBytes - before.bytes
  }
  test('is that of one block at a time, and all is freed', () => {
    const tensor = 2000 * 64 * 4
    const [whole, again] = [peak(direct), peak(recompute)]
    expect(whole).toBeGreaterThan(6 * 4 * tensor)
    expect(again).toBeLessThan(0.6 * whole)
    expect(again).toBeLessThan((6 + 10) * tensor)
  })
})

describe('hooks', () => {
  test('of tensors and modules see the gradients once; forward hooks run in both forwards', () => {
    const run = (call: Call) =>
      scope(() => {
        manualSeed(2)
        const layer = new Linear(3, 3)
        const seen: unknown[] = []
        let forwards = 0
        layer.registerForwardHook(() => void forwards++)
        layer.registerFullBackwardHook((_, [gradInput], [gradOutput]) => {
          seen.push(bits(gradInput!), bits(gradOutput!))
          return [gradInput!.mul(2)]
        })
        const x = randn([2, 3], { requiresGrad: true })
        const h = x.mul(3)
        h.registerHook((grad) => void seen.push(bits(grad)))
        const y = call(
          (h: Tensor) => {
            const inner = layer.forward(h)
            inner.registerHook((grad) => grad.mul(0.5))
            return inner.square()
          },
          [h],
        )
        y.registerHook((grad) => void seen.push(bits(grad)))
        y.sum().backward()
        return { seen, grads: [x, ...layer.parameters()].map(({ grad }) => bits(grad!)), forwards }
      })
    const [plain, again] = [run(direct), run(recompute)]
    expect(again).toEqual({ ...plain, forwards: 2 })
    expect(plain.seen).toHaveLength(4)
  })

  test.each<[string, Call, Call]>([
    ['a block', recompute, direct],
    ['a block in a block', recompute, recompute],
  ])('that %s registers are there once', (_, outer, inner) => {
    const run = (outer: Call, inner: Call) =>
      scope(() => {
        manualSeed(2)
        const layer = new Linear(2, 2)
        const x = randn([1, 2], { requiresGrad: true })
        const block = (x: Tensor, h: Tensor) => {
          for (const tensor of [x, h, layer.weight]) tensor.registerHook((grad) => grad.mul(10))
          layer.registerForwardHook((_, __, y: Tensor) => y.mul(10))
          return layer.forward(x.add(h))
        }
        const y = outer((x: Tensor, h: Tensor) => inner(block, [x, h]), [x, x.mul(2)]).sum()
        y.backward(null, { retainGraph: true })
        y.backward()
        return [x.grad!, layer.weight.grad!, layer.forward(x)].map(bits)
      })
    expect(run(outer, inner)).toEqual(run(direct, direct))
  })

  test('that only the first forward registers stay, and those that were removed do not come back', () => {
    const run = (call: Call, removed: boolean) =>
      scope(() => {
        manualSeed(2)
        const layer = new Linear(2, 2)
        const calls = { once: 0, each: 0 }
        const handles: HookHandle[] = []
        const block = (x: Tensor) => {
          const during = layer.registerForwardHook((_, __, y: Tensor) => y.mul(2))
          if (handles.length === 0) layer.weight.registerHook(() => void calls.once++)
          handles.push(layer.weight.registerHook(() => void calls.each++))
          const y = layer.forward(x)
          during.remove()
          return y
        }
        const y = call(block, [randn([1, 2])]).sum()
        if (removed) handles[0].remove()
        y.backward()
        layer
          .forward(randn([1, 2]))
          .sum()
          .backward()
        handles[0].remove()
        layer
          .forward(randn([1, 2]))
          .sum()
          .backward()
        return { ...calls, grad: bits(layer.weight.grad!) }
      })
    for (const removed of [false, true]) expect(run(recompute, removed)).toEqual(run(direct, removed))
    expect(run(direct, false)).toMatchObject({ once: 3, each: 2 })
  })

  test('the load that moves expertBias counts once', () => {
    const bias = (call: Call) =>
      scope(() => {
        const moe = new MoE({ dim: 2, numExperts: 2, gatingTopN: 1, expertBias: true })
        moe.gate.toGates.weight.copyFrom([
          [1, 0],
          [0, 1],
        ])
        const tokens = (n: number, token: number[]) =>
          tensor([Array.from({ length: n }, () => token)], null, { requiresGrad: true })
        call(moe, [tokens(3, [1, 0])])
          .outputs.sum()
          .backward()
        moe.forward(tokens(4, [0, 1]))
        moe.updateExpertBias(0.5)
        return Array.from((moe.gate as TopNGating).expertBias!.dataSync())
      })
    expect(bias(direct)).toEqual([0.5, -0.5])
    expect(bias(recompute)).toEqual([0.5, -0.5])
  })

  test('MoEMonitor counts once', () => {
    const counts = (call: Call) => {
      manualSeed(4)
      const moe = new MoE({ dim: 8, numExperts: 4 })
      using monitor = new MoEMonitor(moe)
      scope(() =>
        call(moe, [randn([2, 6, 8], { requiresGrad: true })])
          .outputs.sum()
          .backward(),
      )
      return monitor.report()
    }
    expect(counts(recompute)).toEqual(counts(direct))
  })
})
