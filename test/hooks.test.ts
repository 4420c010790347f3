import { describe, expect, it } from 'vitest'
import {
  keep,
  Linear,
  Module,
  MoE,
  type MoEResult,
  MoeError,
  ones,
  randn,
  scope,
  Tensor,
  tensor,
} from '../lib/index.js'
import { expectNoLeak, expectNoLeakAsync, live, values } from './support/baseline.js'

const mine = new RangeError('mine')
const throwMine = (): never => {
  throw mine
}

/** The error of `fn`; fails if it does not throw. */
function thrownBy(fn: () => unknown): unknown {
  try {
    fn()
  } catch (error) {
    return error
  }
  return expect.unreachable('nothing was thrown')
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

describe('module hooks', () => {
  const layer = new Linear(2, 2, { bias: false })

  it('pre-hooks replace arguments, hooks replace the result', () => {
    expectNoLeak(() =>
      scope(() => {
        const x = ones([1, 2])
        const plain = values(layer.forward(x))
        const calls: string[] = []
        const handles = [
          layer.registerForwardPreHook((module, args) => {
            calls.push('pre')
            expect(module).toBe(layer)
            return [(args[0] as Tensor).mul(2)]
          }),
          layer.registerForwardHook((module, args, result) => {
            calls.push('post')
            expect(module).toBe(layer)
            expect(values(args[0] as Tensor)).toEqual([2, 2])
            return (result as Tensor).add(1)
          }),
          layer.registerForwardHook(() => void calls.push('last')),
        ]
        const hooked = values(layer.forward(x))
        expect(calls).toEqual(['pre', 'post', 'last'])
        for (const [i, value] of hooked.entries()) expect(value).toBeCloseTo(2 * plain[i] + 1, 5)
        for (const handle of handles) handle.remove()
        expect(values(layer.forward(x))).toEqual(plain)
      }),
    )
  })

  it('full backward hooks see gradInput and gradOutput and may replace gradInput', () => {
    expectNoLeak(() =>
      scope(() => {
        const x = randn([3, 2], { requiresGrad: true })
        const seen: (number[] | null)[][] = []
        const first = layer.registerFullBackwardHook((_, gradInput, gradOutput) => {
          seen.push([...gradInput, ...gradOutput].map((grad) => (grad ? values(grad) : null)))
        })
        layer.forward(x).mul(2).sum().backward()
        const plain = values(x.grad)
        expect(seen).toEqual([[plain, Array(6).fill(2)]])
        x.grad = null
        const second = layer.registerFullBackwardHook((_, [gradInput]) => [gradInput!.mul(-1)])
        layer.forward(x).mul(2).sum().backward()
        expect(values(x.grad)).toEqual(plain.map((entry) => -entry))
        first.remove()
        second.remove()
        layer.zeroGrad()
      }),
    )
  })

  it('full backward hooks run, and leak nothing, if no input needs a gradient', () => {
    const x = ones([3, 2])
    const seen: unknown[][] = []
    const handle = layer.registerFullBackwardHook((_, gradInput, gradOutput) => {
      seen.push([gradInput, values(gradOutput[0])])
    })
    for (let i = 0; i < 3; i++) {
      expectNoLeak(() => {
        scope(() => layer.forward(x).sum().backward())
        layer.zeroGrad()
      })
    }
    expect(seen).toEqual(Array(3).fill([[null], Array(6).fill(1)]))
    handle.remove()
    x.dispose()
  })

  it('work on a MoE with its result object', () => {
    const moe = new MoE({ dim: 4, numExperts: 2 })
    const counts: number[][] = []
    moe.registerFullBackwardHook((_, gradInput, gradOutput) => void counts.push([gradInput.length, gradOutput.length]))
    moe.registerForwardHook((_, __, result: MoEResult) => result.withOutputs(result.outputs.mul(2)))
    expectNoLeak(() => {
      scope(() => {
        const x = randn([1, 5, 4], { requiresGrad: true })
        const { outputs, totalAuxLoss } = moe.forward(x)
        outputs.sum().add(totalAuxLoss).backward()
        expect(x.grad!.shape).toEqual([1, 5, 4])
      })
      moe.zeroGrad()
    })
    expect(counts).toEqual([[1, 4]])
    moe.dispose()
  })

  it('pass errors through unchanged, on every path, and leak nothing', () => {
    const kinds = [
      (module: Module) => module.registerForwardPreHook(throwMine),
      (module: Module) => module.registerForwardHook(throwMine),
      (module: Module) => module.registerFullBackwardHook(throwMine),
    ]
    for (const register of kinds) {
      for (const requiresGrad of [true, false]) {
        const handle = register(layer)
        expectNoLeak(() => {
          expect(
            thrownBy(() =>
              scope(() => {
                const x = ones([3, 2], { requiresGrad })
                layer.forward(x).exp().sum().backward()
              }),
            ),
          ).toBe(mine)
          layer.zeroGrad()
        })
        handle.remove()
      }
    }
  })

  it('reject hooks that return invalid values', () => {
    expectNoLeak(() => {
      for (const bad of [5, 'x', {}]) {
        const handle = layer.registerForwardPreHook(() => bad as never)
        expect(() => scope(() => layer.forward(ones([1, 2])))).toThrow(MoeError)
        handle.remove()
      }
      for (const bad of [5, [], [1], [ones([9])], [null, null]]) {
        const handle = layer.registerFullBackwardHook(() => bad as never)
        const run = () =>
          scope(() =>
            layer
              .forward(ones([3, 2], { requiresGrad: true }))
              .sum()
              .backward(),
          )
        expect(run).toThrow(MoeError)
        handle.remove()
        for (const entry of Array.isArray(bad) ? bad : []) if (entry instanceof Tensor) entry.dispose()
      }
      layer.zeroGrad()
    })
    expect(() => layer.registerForwardHook(1 as never)).toThrow(MoeError)
    const { forwardless } = { forwardless: new (class extends Module {})() }
    expect(() => forwardless.registerForwardHook(() => {})).toThrow(MoeError)
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
