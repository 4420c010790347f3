import { describe, expect, it } from 'vitest'
import { Linear, Module, MoE, type MoEResult, MoeError, ones, randn, scope, Tensor } from '../../lib/index.js'
import { expectNoLeak, values } from '../support/baseline.js'
import { thrownBy } from '../support/faults.js'

const mine = new RangeError('mine')
const throwMine = (): never => {
  throw mine
}

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

  it('a hook that is registered by a hook runs from the next forward on', () => {
    const x = ones([1, 2])
    const calls: string[] = []
    const register = (name: string) => layer.registerForwardHook(() => void calls.push(name))
    const inner: { remove(): void }[] = []
    const outer = layer.registerForwardHook(() => {
      calls.push('outer')
      inner.push(register(`inner ${inner.length}`))
    })
    scope(() => layer.forward(x))
    expect(calls.splice(0)).toEqual(['outer'])
    scope(() => layer.forward(x))
    expect(calls).toEqual(['outer', 'inner 0'])
    for (const handle of [outer, ...inner]) handle.remove()
    x.dispose()
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

  it('full backward hooks may return gradients that nobody needs', () => {
    class Sum extends Module {
      forward(x: Tensor, y: Tensor): Tensor {
        return x.add(y)
      }
    }
    const module = new Sum()
    module.registerFullBackwardHook((_, [grad]) => [grad!.mul(3), grad!.mul(5)])
    expectNoLeak(() =>
      scope(() => {
        const x = ones([2], { requiresGrad: true })
        module
          .forward(x, ones([2]))
          .sum()
          .backward()
        expect(values(x.grad)).toEqual([3, 3])
      }),
    )
  })

  it('full backward hooks get null for a result that is not used', () => {
    class Inner extends Module {
      hidden: Tensor | null = null
      forward(x: Tensor): Tensor[] {
        this.hidden = x.mul(3)
        return [this.hidden.mul(2), this.hidden.exp()]
      }
    }
    const module = new Inner()
    const seen: unknown[] = []
    module.registerFullBackwardHook((_, [grad], gradOutput) => void seen.push(values(grad), gradOutput))
    expectNoLeak(() =>
      scope(() => {
        module.forward(ones([2], { requiresGrad: true }))
        module.hidden!.sum().backward()
      }),
    )
    expect(seen).toEqual([
      [3, 3],
      [null, null],
    ])
  })

  it('full backward hooks may dispose the gradients; the next one sees them, too', () => {
    const seen: number[][] = []
    const handles = [1, 2].map(() =>
      layer.registerFullBackwardHook((_, [gradInput], [gradOutput]) => {
        seen.push([...values(gradInput), ...values(gradOutput)])
        for (const grad of [gradInput, gradOutput]) grad!.dispose()
      }),
    )
    expectNoLeak(() => {
      scope(() => {
        const x = ones([1, 2], { requiresGrad: true })
        layer.forward(x).sum().backward()
        expect(seen).toEqual(Array(2).fill([...values(x.grad), 1, 1]))
      })
      layer.zeroGrad()
    })
    for (const handle of handles) handle.remove()
  })

  it('full backward hooks keep every key of a result', () => {
    class Keys extends Module {
      forward(x: Tensor) {
        return JSON.parse('{"__proto__":1,"a":2}', (key, value) => (key === 'a' ? x.mul(2) : value))
      }
    }
    const keys = new Keys()
    keys.registerFullBackwardHook(() => {})
    const result = keys.forward(ones([1]))
    expect(Object.keys(result)).toEqual(['__proto__', 'a'])
    expect(Object.keys(keys.forward(ones([1], { requiresGrad: true })))).toEqual(['__proto__', 'a'])
  })

  it('full backward hooks work on a result that contains itself', () => {
    class Cyclic extends Module {
      forward(x: Tensor): { y: Tensor; all: unknown[] } {
        const result = { y: x.mul(2), all: [] as unknown[] }
        result.all.push(result)
        return result
      }
    }
    const module = new Cyclic()
    module.registerFullBackwardHook((_, [grad]) => [grad!.mul(5)])
    expectNoLeak(() =>
      scope(() => {
        const x = ones([2], { requiresGrad: true })
        const result = module.forward(x)
        expect(result.all[0]).toBe(result)
        result.y.sum().backward()
        expect(values(x.grad)).toEqual([10, 10])
      }),
    )
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
