import { describe, expect, it } from 'vitest'
import {
  AdamW,
  Linear,
  MoE,
  manualSeed,
  mseLoss,
  noGrad,
  ones,
  randn,
  rmsNorm,
  SGD,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { expectNoLeak, live, values } from '../support/baseline.js'

const relative = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  const norm = (list: number[]) => Math.sqrt(list.reduce((total, x) => total + x * x, 0))
  return norm(Array.from(a, (x, i) => x - b[i])) / Math.max(norm(Array.from(b)), 1e-30)
}

describe('backward', () => {
  it('adds to grad until zeroed', () => {
    scope(() => {
      const x = tensor([1, 2, 3], [3], { requiresGrad: true })
      expect(x.grad).toBeNull()
      x.square().sum().backward()
      expect(values(x.grad)).toEqual([2, 4, 6])
      x.mul(10).sum().backward()
      expect(values(x.grad)).toEqual([12, 14, 16])
      x.grad = null
      x.sum().backward()
      expect(values(x.grad)).toEqual([1, 1, 1])
    })
  })

  it('adds up all uses of a tensor in one graph', () => {
    scope(() => {
      const x = tensor([2, 3], [2], { requiresGrad: true })
      const y = x.mul(x).add(x) // x² + x
      y.mul(y).add(y).sum().backward()
      // d/dx of y² + y = (2y + 1)(2x + 1)
      expect(values(x.grad)).toEqual([65, 175])
    })
  })

  it('each leaf has its own gradient, even if both got the same one', () => {
    scope(() => {
      const leaf = () => tensor([1, 1], [2], { requiresGrad: true })
      const leaves = [leaf(), leaf(), leaf()]
      const [a, b, c] = leaves
      a.add(b)
        .reshape([1, 2])
        .add(c.reshape([1, 2]))
        .sum()
        .backward()
      for (const [i, x] of leaves.entries()) {
        x.mul(6).sum().backward() // adds to this gradient in place
        expect(leaves.map(({ grad }) => values(grad)[0])).toEqual(leaves.map((_, j) => (j <= i ? 7 : 1)))
      }
    })
  })

  it('accepts only a gradient of the shape of the tensor', () => {
    scope(() => {
      const x = tensor([1, 2], [2], { requiresGrad: true })
      const y = x.mul(3)
      expect(() => y.backward()).toThrowError(expect.objectContaining({ code: 'SHAPE' }))
      expect(() => y.backward(ones([3]))).toThrowError(expect.objectContaining({ code: 'SHAPE' }))
      expect(() => y.backward(ones([2], { dtype: 'f64' }))).toThrowError(expect.objectContaining({ code: 'DTYPE' }))
      expect(() => ones([1]).backward()).toThrowError(expect.objectContaining({ code: 'UNSUPPORTED' }))
      expect(x.grad).toBeNull()
      y.backward(tensor([5, 7]))
      expect(values(x.grad)).toEqual([15, 21])
    })
  })

  it('of a long chain does not recurse', () => {
    expectNoLeak(() =>
      scope(() => {
        const x = ones([1], { requiresGrad: true })
        let y: Tensor = x
        for (let i = 0; i < 20_000; i++) y = y.add(1)
        y.backward()
        expect(x.grad!.item()).toBe(1)
      }),
    )
  })

  it('frees the graph, says so the second time, and keeps it with retainGraph', () => {
    expectNoLeak(() => {
      const x = tensor([3], [1], { requiresGrad: true })
      const y = scope(() => x.square().exp().log())
      y.backward(null, { retainGraph: true })
      expect(x.grad!.item()).toBeCloseTo(6, 5)
      y.backward()
      expect(x.grad!.item()).toBeCloseTo(12, 5)
      expect(() => y.backward()).toThrowError(/freed by an earlier backward.*retainGraph/)
      expect(x.grad!.item()).toBeCloseTo(12, 5)
      y.dispose()
      x.dispose()
    })
  })

  it('throws if a tensor that it needs was changed in place', () => {
    const layer = new Linear(4, 1)
    const optimizer = new SGD(layer.parameters(), { lr: 0.1 })
    scope(() => {
      const x = randn([8, 4], { requiresGrad: true })
      layer.forward(x).square().sum().backward()
      const stale = layer.forward(x).square().sum()
      optimizer.step()
      const grads = [...layer.parameters(), x].map((leaf) => values(leaf.grad))
      expect(() => stale.backward()).toThrowError(/linear .*changed in place/)
      expect([...layer.parameters(), x].map((leaf) => values(leaf.grad))).toEqual(grads)
    })
    scope(() => {
      const x = randn([8, 4], { requiresGrad: true })
      const stale = layer.forward(x).sum()
      layer.loadStateDict(layer.stateDict())
      expect(() => stale.backward()).toThrowError(/changed in place/)
    })
    optimizer.dispose()
    layer.dispose()
  })

  it('a graph that no backward has run is freed with its root', () => {
    expectNoLeak(() => {
      const x = ones([1000], { requiresGrad: true })
      const { tensors } = live()
      const y = scope(() => x.exp().square().sum())
      expect(live().tensors).toBeGreaterThan(tensors + 1)
      y.dispose()
      expect(live().tensors).toBe(tensors)
      x.dispose()
    })
  })
})

describe('a residual', () => {
  /** Gradients of x and gamma, and what a hook on x sees, of x + rmsNorm(x) without one of its terms. */
  const gradients = (terms: readonly ('x' | 'norm')[]): number[][] =>
    scope(() => {
      manualSeed(4)
      const leaf = randn([3, 5], { requiresGrad: true })
      const gamma = randn([5], { requiresGrad: true })
      const x = leaf.mul(1)
      const seen: number[][] = []
      x.registerHook((grad) => {
        seen.push(values(grad))
      })
      const parts = { x, norm: rmsNorm(x, gamma) }
      const weight = randn([3, 5])
      terms
        .map((term) => parts[term].mul(weight))
        .reduce((sum, part) => sum.add(part))
        .sum()
        .backward()
      expect(seen.length).toBe(1)
      return [values(leaf.grad), values(gamma.grad ?? zeros([5])), seen[0]]
    })

  it('and the norm on it add up to one gradient', () => {
    const [both, direct, normed] = [gradients(['x', 'norm']), gradients(['x']), gradients(['norm'])]
    const sum = direct[0].map((value, i) => Math.fround(value + normed[0][i]))
    expect(both[0]).toEqual(sum)
    expect(both[2]).toEqual(sum)
    expect(both[1]).toEqual(normed[1])
    expect(gradients(['norm', 'x'])[0]).toEqual(sum)
  })

  it('leaks nothing, also if the backward of the norm fails', () => {
    expectNoLeak(() =>
      scope(() => {
        const x = randn([3, 5], { requiresGrad: true })
        const gamma = tensor([1, 2, 3, 4, 5], null, { requiresGrad: true })
        const y = x.add(rmsNorm(x, gamma))
        gamma.copyFrom([5, 4, 3, 2, 1])
        expect(() => y.sum().backward()).toThrow(/rmsNorm needs for its gradient has been changed/)
        expect(x.grad).toBeNull()
      }),
    )
  })
})

describe('leaves', () => {
  it('detach cuts history; its result can start a new one', () => {
    scope(() => {
      const x = tensor([2], [1], { requiresGrad: true })
      const y = x.square()
      const cut = y.detach()
      expect(cut.requiresGrad).toBe(false)
      cut.requiresGrad = true
      cut.mul(y).sum().backward() // d(c·x²)/dx = 2xc, d/dc = x²
      expect(x.grad!.item()).toBe(16)
      expect(cut.grad!.item()).toBe(4)
    })
  })

  it('a clone with requiresGrad is a leaf', () => {
    scope(() => {
      const x = tensor([2], [1], { requiresGrad: true })
      const copy = x.square().clone()
      copy.requiresGrad = true
      copy.mul(3).sum().backward()
      expect(copy.grad!.item()).toBe(3)
      expect(x.grad).toBeNull()
    })
  })

  it('only floating-point tensors can be leaves', () => {
    scope(() => {
      const index = tensor(new Int32Array([1]))
      expect(() => (index.requiresGrad = true)).toThrowError(expect.objectContaining({ code: 'DTYPE' }))
      expect(() => (ones([1]).requiresGrad = 1 as never)).toThrowError(expect.objectContaining({ code: 'OPTION' }))
    })
  })

  it('grad can be set to a tensor of the same shape and dtype', () => {
    scope(() => {
      const x = ones([2], { requiresGrad: true })
      expect(() => (x.grad = ones([3]))).toThrowError(expect.objectContaining({ code: 'SHAPE' }))
      x.grad = tensor([5, 6])
      x.sum().backward()
      expect(values(x.grad)).toEqual([6, 7])
    })
  })
})

describe('forwardWithGrad', () => {
  it('equals the normal path, with its gradients', () => {
    manualSeed(3)
    const moe = new MoE({ dim: 8, numExperts: 4, dtype: 'f64' })
    expectNoLeak(() =>
      scope(() => {
        const shape = [2, 6, 8]
        const [x, dy] = [randn(shape, { dtype: 'f64' }), randn(shape, { dtype: 'f64' })]
        x.requiresGrad = true
        const uniforms = randn([2, 2, 6], { dtype: 'f64' }).sigmoid()
        const result = moe.forward(x, { random: { uniforms } })
        result.outputs.mul(dy).sum().add(result.totalAuxLoss.mul(0.5)).backward()
        const expected = [...moe.parameters()].map((parameter) => values(parameter.grad))
        moe.zeroGrad()

        const handle = moe.forwardWithGrad(x.dataSync() as Float64Array, shape, { random: { uniforms } })
        expect(relative(handle.outputs, result.outputs.dataSync())).toBe(0)
        expect(handle.totalAuxLoss).toBe(result.totalAuxLoss.item())
        const { dInput } = handle.backward(dy.dataSync() as Float64Array, 0.5)
        expect(relative(dInput, x.grad!.dataSync())).toBeLessThan(1e-14)
        for (const [i, parameter] of [...moe.parameters()].entries()) {
          expect(relative(values(parameter.grad), expected[i])).toBeLessThan(1e-14)
        }
        expect(() => handle.backward(dy.dataSync() as Float64Array)).toThrowError(
          expect.objectContaining({ code: 'DISPOSED' }),
        )
        moe.zeroGrad()
      }),
    )
    moe.dispose()
  })

  it('includes the auxiliary loss only on request', () => {
    const moe = new MoE({ dim: 4, numExperts: 2, gatingTopN: 1 })
    const [input, dy] = [Float32Array.from({ length: 32 }, (_, i) => Math.sin(i)), new Float32Array(32)]
    const gradient = (...aux: number[]) => {
      using step = moe.forwardWithGrad(input, [1, 8, 4])
      return Array.from(step.backward(dy, ...aux).dInput)
    }
    expect(gradient()).toEqual(Array(32).fill(0))
    expect(gradient(0)).toEqual(gradient())
    expect(gradient(1)).not.toEqual(gradient())
    moe.dispose()
  })

  it('returns zeros for the input if a hook lets no gradient through', () => {
    const hooks = {
      pre: (moe: MoE) => moe.registerForwardPreHook((_, [x, options]) => [(x as Tensor).detach(), options]),
      backward: (moe: MoE) => moe.registerFullBackwardHook(() => [null]),
    }
    for (const register of Object.values(hooks))
      expectNoLeak(() => {
        using moe = new MoE({ dim: 4, numExperts: 2 })
        register(moe)
        const step = moe.forwardWithGrad(new Float32Array(8).fill(0.1), [1, 2, 4])
        expect(Array.from(step.backward(step.outputs, 1).dInput)).toEqual(Array(8).fill(0))
        expect(moe.gate.toGates.weight.grad).not.toBeNull()
      })
  })

  it('needs the result of the layer', () => {
    using moe = new MoE({ dim: 4, numExperts: 2 })
    moe.registerForwardHook(() => 5)
    expectNoLeak(() =>
      expect(() => moe.forwardWithGrad(new Float32Array(8), [1, 2, 4])).toThrow(
        '[MoE.forwardWithGrad] a forward hook of the layer must return a MoEResult, got 5',
      ),
    )
  })

  it('records nothing inside noGrad, so backward throws', () => {
    const moe = new MoE({ dim: 4, numExperts: 2 })
    using step = noGrad(() => moe.forwardWithGrad(new Float32Array(8), [1, 2, 4]))
    expect(() => step.backward(new Float32Array(8))).toThrowError(expect.objectContaining({ code: 'UNSUPPORTED' }))
    moe.dispose()
  })

  it('leaks nothing if it fails, is dropped, or gets invalid arguments', () => {
    const moe = new MoE({ dim: 4, numExperts: 2, onNonFinite: 'throw' })
    expectNoLeak(() => {
      const input = new Float32Array(8)
      moe.forwardWithGrad(input, [1, 2, 4]).dispose()
      const handle = moe.forwardWithGrad(input, [1, 2, 4])
      expect(() => handle.backward(new Float32Array(3))).toThrowError(expect.objectContaining({ code: 'SHAPE' }))
      expect(() => handle.backward(new Float64Array(8) as never)).toThrowError(
        expect.objectContaining({ code: 'DTYPE' }),
      )
      expect(() => handle.backward(new Float32Array(8), Number.NaN)).toThrowError(
        '[MoE.forwardWithGrad.backward] dTotalAux must be a finite number, got NaN',
      )
      handle.dispose()
      expect(() => moe.forwardWithGrad(input, [1, 3, 4])).toThrow()
      expect(() => moe.forwardWithGrad(input, [2, 4])).toThrow()
      input[3] = Number.NaN
      expect(() => moe.forwardWithGrad(input, [1, 2, 4])).toThrowError(expect.objectContaining({ code: 'NON_FINITE' }))
    })
    moe.dispose()
  })
})

describe('training', () => {
  it('a small regression converges in constant memory', () => {
    manualSeed(1)
    const layer = new Linear(3, 1)
    const optimizer = new AdamW(layer.parameters(), { lr: 0.05, weightDecay: 0 })
    const [x, w] = [randn([64, 3]), tensor([[1], [-2], [0.5]])]
    const y = scope(() => x.matmul(w).add(0.3))
    const step = () =>
      scope(() => {
        const loss = mseLoss(layer.forward(x), y)
        optimizer.zeroGrad()
        loss.backward()
        optimizer.step()
        return loss.item()
      })
    step()
    const before = live()
    let loss = 1
    for (let i = 0; i < 400; i++) {
      loss = step()
      expect(live()).toEqual(before)
    }
    expect(loss).toBeLessThan(1e-5)
    expect(relative(values(layer.weight), [1, -2, 0.5])).toBeLessThan(1e-2)
  })
})
