import { describe, expect, it } from 'vitest'
import { keep, Module, MoE, MoeError, ones, scope, type Tensor, tensor } from '../../lib/index.js'
import { expectNoLeak, expectNoLeakAsync, live, values } from '../support/baseline.js'
import { thrownBy } from '../support/faults.js'

const mine = new RangeError('mine')
const throwMine = (): never => {
  throw mine
}

describe('Tensor.registerHook', () => {
  it('may dispose the root of the backward that calls it', () => {
    expectNoLeak(() => {
      const x = tensor([1, 2], [2], { requiresGrad: true })
      const root = scope(() => {
        const y = x.square()
        const root = y.mul(y).sum()
        root.registerHook(() => root.dispose())
        return root
      })
      root.backward()
      expect(root.disposed).toBe(true)
      expect(values(x.grad)).toEqual([4, 32])
      x.dispose()
    })
  })

  it('sees the gradient of a leaf and of an inner tensor, once for each backward', () => {
    expectNoLeak(() =>
      scope(() => {
        const x = tensor([1, 2], [2], { requiresGrad: true })
        const y = x.mul(3)
        const seen: [string, number[]][] = []
        x.registerHook((grad) => void seen.push(['x', values(grad)]))
        y.registerHook((grad) => void seen.push(['y', values(grad)]))
        y.add(y).sum().backward()
        expect(seen).toEqual([
          ['y', [2, 2]],
          ['x', [6, 6]],
        ])
      }),
    )
  })

  it('of one function that is registered twice, each is removed by its own handle', () => {
    expectNoLeak(() =>
      scope(() => {
        const x = tensor([1, 2], [2], { requiresGrad: true })
        const double = (grad: Tensor) => grad.mul(2)
        const [first] = [x.registerHook(double), x.registerHook(double)]
        first.remove()
        first.remove()
        x.sum().backward()
        expect(values(x.grad)).toEqual([2, 2])
      }),
    )
  })

  it('replaces the gradient; hooks run in order; a removed one does not run', () => {
    expectNoLeak(() =>
      scope(() => {
        const x = tensor([1, 2], [2], { requiresGrad: true })
        const y = x.mul(3)
        y.registerHook((grad) => grad.mul(10))
        const removed = y.registerHook(() => ones([2]))
        y.registerHook((grad) => grad.add(1))
        x.registerHook((grad) => grad.neg())
        removed.remove()
        removed.remove()
        y.sum().backward()
        expect(values(x.grad)).toEqual([-33, -33])
      }),
    )
  })

  it('disposes the gradient after the call unless it is kept', () => {
    expectNoLeak(() => {
      const x = tensor([4], [1], { requiresGrad: true })
      const grads: Tensor[] = []
      x.registerHook((grad) => void grads.push(grad))
      x.registerHook((grad) => void grads.push(keep(grad)))
      scope(() => x.square().sum().backward())
      expect(grads.map((grad) => grad.disposed)).toEqual([true, false])
      expect(values(grads[1])).toEqual([8])
      grads[1].dispose()
      x.dispose()
    })
  })

  it('passes its error through unchanged; gradients stay as they were', () => {
    for (const where of ['leaf', 'inner'] as const) {
      expectNoLeak(() => {
        const [x, w] = [ones([2], { requiresGrad: true }), ones([2], { requiresGrad: true })]
        scope(() => {
          const y = x.mul(w)
          const target = where === 'leaf' ? x : y
          target.registerHook((grad) => grad.mul(2))
          target.registerHook(throwMine)
          expect(thrownBy(() => y.exp().sum().backward())).toBe(mine)
          expect([x.grad, w.grad]).toEqual([null, null])
        })
        x.dispose()
        w.dispose()
      })
    }
  })

  it('refuses what is no gradient', () => {
    const bad: unknown[] = [1, 'x', {}, ones([3]), ones([2], { dtype: 'f64' }), [ones([2])]]
    const gone = ones([2])
    gone.dispose()
    for (const replacement of [...bad, gone]) {
      expectNoLeak(() =>
        scope(() => {
          const x = ones([2], { requiresGrad: true })
          x.registerHook(() => replacement as Tensor)
          expect(() => x.exp().sum().backward()).toThrow(MoeError)
          expect(x.grad).toBeNull()
        }),
      )
    }
    expect(() => scope(() => ones([1]).registerHook(() => {}))).toThrow(MoeError)
    expect(() => scope(() => ones([1], { requiresGrad: true }).registerHook(1 as never))).toThrow(MoeError)
  })

  it('may do anything meanwhile: dispose, start another backward', () => {
    expectNoLeak(() =>
      scope(() => {
        const x = tensor([1, 2], [2], { requiresGrad: true })
        const other = tensor([3], [1], { requiresGrad: true })
        const y = x.exp().log().mul(2)
        const root = y.mul(1).sum()
        y.registerHook((grad) => {
          other.square().sum().backward()
          grad.dispose()
          y.dispose()
        })
        root.backward()
        expect(values(other.grad)).toEqual([6])
        for (const entry of values(x.grad)) expect(entry).toBeCloseTo(2, 5)
      }),
    )
    expectNoLeak(() =>
      scope(() => {
        const x = ones([2], { requiresGrad: true })
        const y = x.exp().mul(2)
        const root = y.square().sum()
        y.registerHook(() => {
          root.dispose()
          y.dispose()
        })
        root.backward()
        for (const entry of values(x.grad)) expect(entry).toBeCloseTo(8 * Math.E ** 2, 4)
      }),
    )
  })
})

describe('user code inside of a forward', () => {
  class Failing extends Module {
    forward(x: Tensor): Tensor {
      x.add(1)
      throw mine
    }
  }

  it('an expert that throws, or returns an invalid value, leaks nothing', () => {
    const results: unknown[] = [null, 1, 'x', undefined]
    class Nonsense extends Module {
      forward(): unknown {
        return results[0]
      }
    }
    const x = ones([1, 4, 4], { requiresGrad: true })
    const failing = new MoE({ dim: 4, experts: [new Failing(), new Failing()] })
    const nonsense = new MoE({ dim: 4, experts: [new Nonsense(), new Nonsense()] })
    expectNoLeak(() => {
      expect(thrownBy(() => failing.forward(x))).toBe(mine)
      expect(thrownBy(() => failing.forwardWithGrad(new Float32Array(16), [1, 4, 4]))).toBe(mine)
      for (; results.length > 0; results.shift()) expect(() => nonsense.forward(x)).toThrow(MoeError)
    })
    failing.dispose()
    nonsense.dispose()
    x.dispose()
  })

  it('a promise inside a scope rejects with the same error', async () => {
    await expectNoLeakAsync(async () => {
      const promise = scope(async () => {
        ones([4])
        await null
        throw mine
      })
      await expect(promise).rejects.toBe(mine)
    })
    expect(live().tensors).toBeGreaterThan(0) // the layer
  })
})
