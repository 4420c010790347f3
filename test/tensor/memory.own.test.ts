import { describe, expect, it } from 'vitest'
import {
  AdamW,
  attention,
  clipGradNorm,
  concat,
  crossEntropy,
  dropout,
  embedding,
  FeedForward,
  Linear,
  layerNorm,
  linear,
  logSoftmax,
  MoE,
  manualSeed,
  matmul,
  memory,
  mseLoss,
  ones,
  ops,
  randn,
  resetPeakMemory,
  rmsNorm,
  SGD,
  SparseMoEBlock,
  scope,
  softmax,
  type Tensor,
  tensor,
} from '../../lib/index.js'
import { expectNoLeak, live } from '../support/baseline.js'
import { emulated, runChild, sanitized } from '../support/child.js'
import { settled } from '../support/faults.js'

const { add, combine, dispatch, expertFfn, groupedGemm, mean, reshape, route, slice, sum, to, topk, transpose } = ops

describe('flat memory', () => {
  const limit = emulated ? 250 : 150
  it(`4,000 tensors of 1 MB in a synchronous loop stay below ${limit} MB`, async () => {
    const { code, stdout, stderr } = await runChild('scope-loop.mjs')
    expect([code, stderr]).toEqual([0, ''])
    expect(Number(stdout)).toBeGreaterThan(0)
    if (!sanitized) expect(Number(stdout)).toBeLessThan(limit)
  })

  const model = () => {
    manualSeed(5)
    const block = new SparseMoEBlock(new MoE({ dim: 8, numExperts: 4, noiseGates: true }), { addFfAfter: true })
    const optimizer = new AdamW(block.parameters(), { lr: 1e-3 })
    const [x, y] = [randn([2, 8, 8]), randn([2, 8, 8])]
    const loss = (): Tensor => {
      const { outputs, totalAuxLoss } = block.forward(dropout(x, 0.1))
      return mseLoss(outputs, y).add(totalAuxLoss)
    }
    const update = (value: Tensor): number => {
      optimizer.zeroGrad()
      value.backward()
      clipGradNorm(block.parameters(), 1)
      optimizer.step()
      return value.item()
    }
    const dispose = () => {
      for (const entry of [x, y, block, optimizer]) entry.dispose()
    }
    return { loss, update, dispose }
  }

  const steps = process.env.ST_MOE_TEST_DEVICE ? 200 : 2000 // the GPU may be the emulator, which is slow

  it(`${steps} training steps leave memory() the same after each`, () => {
    expectNoLeak(() => {
      const { loss, update, dispose } = model()
      const step = () => scope(() => update(loss()))
      const first = step()
      const before = live()
      resetPeakMemory()
      step()
      const { peakBytes } = memory()
      let last = first
      for (let i = 0; i < steps; i++) {
        last = step()
        if (live().tensors !== before.tensors || live().bytes !== before.bytes) expect(live()).toEqual(before)
      }
      expect(live()).toEqual(before)
      expect(memory().peakBytes).toBe(peakBytes)
      expect(last).toBeLessThan(first)
      dispose()
    })
  })

  it('the same with an async scope', async () => {
    const start = live()
    const { loss, update, dispose } = model()
    const step = () =>
      scope(async () => {
        const value = loss()
        await null
        return update(value)
      })
    await step()
    const before = live()
    for (let i = 0; i < steps / 4; i++) {
      await step()
      if (live().tensors !== before.tensors || live().bytes !== before.bytes) expect(live()).toEqual(before)
    }
    dispose()
    expect(live()).toEqual(start)
  })

  it('a disposed step without a scope leaks nothing either', () => {
    const layer = new Linear(4, 4)
    expectNoLeak(() => {
      const x = ones([2, 4])
      const y = layer.forward(x)
      const loss = y.sum()
      loss.backward()
      for (const entry of [x, y, loss]) entry.dispose()
      layer.zeroGrad()
    })
    layer.dispose()
  })
})

describe('modules', () => {
  it('100 modules created and disposed leak nothing', () => {
    expectNoLeak(() => {
      for (let i = 0; i < 100; i++) {
        const block = new SparseMoEBlock(new MoE({ dim: 8, numExperts: 3, gatingTopN: 3 }), { addFfBefore: true })
        const optimizer = i % 2 ? new SGD(block.parameters(), { momentum: 0.9 }) : new AdamW(block.parameters())
        const head = new FeedForward(8)
        scope(() => {
          const { outputs, totalAuxLoss } = block.forward(randn([1, 4, 8]))
          head.forward(outputs).sum().add(totalAuxLoss).backward()
          optimizer.step()
        })
        if (i % 3 === 0) scope(() => optimizer.loadStateDict(optimizer.stateDict()))
        if (i % 3 === 1) scope(() => block.loadStateDict(block.stateDict()))
        for (const entry of [block, head, optimizer]) entry.dispose()
        block.dispose()
      }
    })
  })
})

describe('no op leaves anything behind when it throws', () => {
  const float = (...shape: number[]) => randn(shape, { requiresGrad: true })
  const index = (...list: number[]) => tensor(new Int32Array(list))
  const routed = () => route(float(1, 4, 8), float(3, 8))
  const weights = () => ({
    w1: float(3, 8, 8),
    b1: float(3, 8),
    multBias: float(3, 4),
    w2: float(3, 8, 4),
    b2: float(3, 8),
  })
  const wide = (): Tensor => randn([4, 8], { dtype: 'f64' })

  const layer = new Linear(2, 2)

  const failing: Record<string, () => unknown> = {
    add: () => add(float(2, 3), float(4)),
    'add, dtype': () => add(float(4, 8), wide()),
    matmul: () => matmul(float(2, 3), float(2, 3)),
    'matmul, batch': () => matmul(float(2, 3, 3), float(3, 3, 3)),
    linear: () => linear(float(2, 3), float(4, 3), float(5)),
    embedding: () => embedding(float(4, 8), index(0, 4)),
    'embedding, negative': () => embedding(float(4, 8), index(0, -1)),
    rmsNorm: () => rmsNorm(float(4, 8), float(4)),
    layerNorm: () => layerNorm(float(4, 8), float(8), float(4)),
    softmax: () => softmax(float()),
    logSoftmax: () => logSoftmax(index(1)),
    crossEntropy: () => crossEntropy(float(2, 4), index(0, 4)),
    'crossEntropy, shape': () => crossEntropy(float(2, 4), index(0)),
    attention: () => attention(float(1, 2, 8), float(1, 2, 8), float(1, 2, 8), { heads: 3 }),
    'attention, causal': () => attention(float(1, 3, 8), float(1, 2, 8), float(1, 2, 8), { heads: 2 }),
    dropout: () => dropout(float(3), 1),
    sum: () => sum(float(3), 1),
    mean: () => mean(float(3, 3), [0, 0]),
    reshape: () => reshape(float(3), [4]),
    transpose: () => transpose(float(3)),
    slice: () => slice(float(3), 0, 2, 1),
    concat: () => concat([float(3, 3), float(3, 4)]),
    to: () => to(float(3), 'cuda:99'),
    tensor: () => tensor([[1, 2], [3]]),
    'tensor, device': () => tensor([1, 2], [2], { device: 'cuda:99' }),
    'tensor, gradient': () => tensor(new Int32Array(2), [2], { requiresGrad: true }),
    topk: () => topk(float(3), 4),
    groupedGemm: () => groupedGemm(float(4, 8), float(2, 3, 8), index(1, 2)),
    mseLoss: () => mseLoss(float(3), float(4)),
    route: () => route(float(1, 4, 8), float(3, 8), { topN: 4 }),
    'route, uniforms': () => route(float(1, 4, 8), float(3, 8), { uniforms: wide() }),
    'route, mask after uniforms': () =>
      route(float(1, 4, 8), float(3, 8), { uniforms: randn([2, 1, 4]), mask: ones([3]) }),
    'route, threshold after mask': () => route(float(1, 4, 8), float(3, 8), { mask: ones([1, 4]), threshold: wide() }),
    'route, generator': () => route(float(1, 4, 8), float(3, 8), { mask: ones([1, 4]), generator: {} as never }),
    dispatch: () => dispatch(float(1, 3, 8), routed()),
    'dispatch, capacity': () => dispatch(float(1, 4, 8), { ...routed(), capacity: 0 }),
    'dispatch, experts': () => dispatch(float(1, 4, 8), { ...routed(), numExperts: 1 }),
    combine: () => combine(float(3, 1, 5, 8), routed()),
    expertFfn: () => expertFfn(float(1, 4, 8), routed(), { ...weights(), w1: float(3, 8, 4) }),
    'expertFfn, rows': () => expertFfn(float(1, 4, 8), { ...routed(), capacity: 0 }, weights()),
    'expertFfn, experts': () => expertFfn(float(1, 4, 8), null, weights()),
    'AdamW, state': () => new AdamW(layer.parameters()).loadStateDict({ '0.step': ones([1]) }),
  }
  for (const [name, fn] of Object.entries(failing)) {
    it(name, () => {
      expectNoLeak(() =>
        expect(() => scope(() => settled(fn))).toThrowError(expect.objectContaining({ name: 'MoeError' })),
      )
    })
  }
})
