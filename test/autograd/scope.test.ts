import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import {
  allOrNone,
  keep,
  Linear,
  MoE,
  type MoEResult,
  MoeError,
  noGrad,
  ones,
  randn,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { expectNoLeak, expectNoLeakAsync, live, values } from '../support/baseline.js'

const beside = <T>(value: T): T => {
  ones([3])
  return value
}

const disposeAll = (...tensors: Tensor[]): void => {
  for (const entry of tensors) entry.dispose()
}

describe('allOrNone', () => {
  it('frees what an inner one has made, too', () => {
    expectNoLeak(() => {
      const fail = () =>
        allOrNone(() => {
          allOrNone(() => keep(ones([2])))
          throw new Error('mine')
        })
      expect(fail).toThrow('mine')
    })
  })
})

describe('scope', () => {
  it('frees tensors created inside and returns what fn returns', () => {
    const result = expectNoLeak(() => scope(() => ones([8]).mul(3).sum().item()))
    expect(result).toBe(24)
  })

  it('lets returned tensors live, in whatever they are wrapped', () => {
    expectNoLeak(() => {
      const made = scope(() => {
        ones([5])
        return {
          plain: ones([1]),
          list: [ones([2]), [ones([3])]],
          map: new Map([['key', ones([4])]]),
          set: new Set([ones([5])]),
          deep: { at: { last: ones([6]) } },
        }
      })
      const inside = [
        made.plain,
        made.list[0] as Tensor,
        (made.list[1] as Tensor[])[0],
        made.map.get('key')!,
        [...made.set][0],
        made.deep.at.last,
      ]
      expect(inside.map((entry) => entry.dataSync().length)).toEqual([1, 2, 3, 4, 5, 6])
      expect(inside.every((entry) => !entry.disposed)).toBe(true)
      scope(() => inside) // what a scope did not make is not its to free
      expect(inside.every((entry) => !entry.disposed)).toBe(true)
      disposeAll(...inside)
      for (const entry of inside) expect(entry.disposed).toBe(true)
    })
  })

  it('lets every tensor of a MoEResult live', () => {
    const moe = new MoE({ dim: 8, numExperts: 4 })
    expectNoLeak(() => {
      const result: MoEResult = scope(() => moe.forward(randn([1, 6, 8])))
      expect(result.outputs.dataSync()).toHaveLength(48)
      const { expertIndex, gate, kept, position, weight } = result.routing
      for (const entry of [...result, expertIndex, gate, kept, position, weight]) expect(entry.disposed).toBe(false)
      result.dispose()
    })
    moe.dispose()
  })

  it('runs no getter while it looks for tensors, and copes with cycles, proxies and long arrays', () => {
    let ran = false
    const cyclic: Record<string, unknown> = {
      get trap() {
        ran = true
        return ones([1])
      },
    }
    cyclic.self = cyclic
    expectNoLeak(() => scope(() => beside(cyclic)))
    expect(ran).toBe(false)
    const { proxy, revoke } = Proxy.revocable({}, {})
    revoke()
    expectNoLeak(() => scope(() => beside([proxy])))
    const numbers = expectNoLeak(() => scope(() => beside(Array.from({ length: 300_000 }, (_, i) => i))))
    expect(numbers).toHaveLength(300_000)
  })

  it('nests: what the inner scope returns belongs to the outer one', () => {
    expectNoLeak(() => {
      const [outer, wasLive] = scope(() => {
        const inner = scope(() => scope(() => ones([4]).add(1)))
        const freed = scope(() => {
          const temporary = ones([4])
          return { disposed: () => temporary.disposed }
        })
        return [inner.mul(2), !inner.disposed && freed.disposed()] as const
      })
      expect(wasLive).toBe(true)
      expect(values(outer)).toEqual([4, 4, 4, 4])
      outer.dispose()
    })
  })

  it('keeps what keep names, and disposed tensors cannot be kept', () => {
    const kept = scope(() =>
      scope(() => ({
        get: (
          (t: Tensor) => () =>
            t
        )(keep(ones([2]))),
      })),
    )
    expect(values(kept.get())).toEqual([1, 1])
    kept.get().dispose()
    expect(() => keep(kept.get())).toThrowError(expect.objectContaining({ code: 'DISPOSED' }))
  })

  it('never frees parameters, nor gradients of what survives', () => {
    const layer = scope(() => new Linear(3, 2))
    const x = randn([4, 3], { requiresGrad: true })
    scope(() => {
      const leaf = ones([2], { requiresGrad: true })
      layer.forward(x).mul(leaf).sum().backward()
      expect(leaf.grad).not.toBeNull()
    })
    expect([...layer.parameters()].every((parameter) => !parameter.disposed && !parameter.grad!.disposed)).toBe(true)
    expect(x.grad!.disposed).toBe(false)
    const before = live()
    layer.zeroGrad()
    expect(before.tensors - live().tensors).toBe(2)
    disposeAll(x)
    layer.dispose()
  })

  it('closes over a ring of gradients', () => {
    expectNoLeak(() =>
      scope(() => {
        const [a, b] = [ones([2], { requiresGrad: true }), ones([2], { requiresGrad: true })]
        a.grad = b
        b.grad = a
        const self = ones([2], { requiresGrad: true })
        self.grad = self
      }),
    )
  })

  it('passes exceptions through unchanged and frees everything', () => {
    const thrown = { not: 'an error' }
    let caught: unknown
    expectNoLeak(() => {
      try {
        scope(() => {
          ones([100])
          scope(() => {
            ones([200])
            throw thrown
          })
        })
      } catch (error) {
        caught = error
      }
    })
    expect(caught).toBe(thrown)
  })

  it('leaves what was there before an exception', () => {
    const before = ones([3])
    expect(() =>
      scope(() => {
        before.add(1)
        throw new Error('mine')
      }),
    ).toThrow('mine')
    expect(values(before)).toEqual([1, 1, 1])
    before.dispose()
  })

  it('refuses what is not a function', () => {
    for (const bad of [undefined, null, 1, {}, 'x']) {
      expect(() => scope(bad as never)).toThrow(MoeError)
      expect(() => noGrad(bad as never)).toThrow(MoeError)
    }
  })

  it('lets a loss leave the scope of its graph', () => {
    const w = tensor([2, 3], [2], { requiresGrad: true })
    const loss = scope(() => w.square().mul(5).sum())
    loss.backward()
    expect(values(w.grad)).toEqual([20, 30])
    disposeAll(loss, w)
  })
})

describe('async scope', () => {
  it('keeps its scope across await and frees at the end', async () => {
    const result = await expectNoLeakAsync(() =>
      scope(async () => {
        const a = ones([10])
        await sleep(1)
        const b = a.mul(2)
        await null
        expect(a.disposed).toBe(false)
        return b.sum().item()
      }),
    )
    expect(result).toBe(20)
  })

  it('keeps concurrent scopes apart', async () => {
    await expectNoLeakAsync(async () => {
      const sums = await Promise.all(
        Array.from({ length: 8 }, (_, i) =>
          scope(async () => {
            const a = ones([4]).mul(i)
            await sleep(1 + (i % 3))
            const b = scope(() => a.add(a).sum())
            await sleep(1)
            return b.item()
          }),
        ),
      )
      expect(sums).toEqual([0, 8, 16, 24, 32, 40, 48, 56])
    })
  })

  it('frees after a rejection, which passes through unchanged', async () => {
    const reason = new TypeError('mine')
    await expectNoLeakAsync(async () => {
      await expect(
        scope(async () => {
          ones([10])
          await null
          ones([10])
          throw reason
        }),
      ).rejects.toBe(reason)
    })
  })

  it('lets returned tensors live', async () => {
    await expectNoLeakAsync(async () => {
      const { a } = await scope(async () => {
        await null
        return { a: ones([2]).add(1), n: zeros([9]).size }
      })
      expect(values(a)).toEqual([2, 2])
      a.dispose()
    })
  })
})

describe('a gradient', () => {
  const gradOf = (x: Tensor) => {
    scope(() => x.square().sum().backward())
    return x.grad as Tensor
  }
  const leaf = () => ones([2], { requiresGrad: true })

  it('that is returned or kept outlives its leaf', () =>
    expectNoLeak(() => {
      const returned = scope(() => gradOf(leaf()))
      const kept: Tensor[] = []
      scope(() => void kept.push(keep(gradOf(leaf()))))
      expect([returned, ...kept].map(values)).toEqual([
        [2, 2],
        [2, 2],
      ])
      disposeAll(returned, ...kept)
    }))

  it('that is kept outlives zeroGrad; any other ends with it, and with its leaf', () =>
    expectNoLeak(() => {
      const [x, y] = [leaf(), leaf()]
      const kept = keep(gradOf(x))
      const own = gradOf(y)
      x.grad = null
      x.dispose()
      y.dispose()
      expect([kept.disposed, own.disposed]).toEqual([false, true])
      kept.dispose()
    }))
})

it('what is made after a scope has ended belongs to the scope around it', () =>
  expectNoLeakAsync(async () => {
    const made: Tensor[] = []
    await scope(async () => {
      let late: Promise<unknown> = Promise.resolve()
      scope(() => {
        late = sleep(1).then(() =>
          made.push(
            ones([3]),
            scope(() => ones([2]).mul(2)),
          ),
        )
      })
      await late
      expect(made.map(({ disposed }) => disposed)).toEqual([false, false])
    })
    expect(made.map(({ disposed }) => disposed)).toEqual([true, true])
  }))

describe('noGrad', () => {
  it('records nothing, nests with scope, and ends with its call', async () => {
    const w = ones([2], { requiresGrad: true })
    await expectNoLeakAsync(async () => {
      scope(() => {
        expect(noGrad(() => w.mul(2)).requiresGrad).toBe(false)
        expect(noGrad(() => scope(() => w.mul(2))).requiresGrad).toBe(false)
        expect(scope(() => noGrad(() => w.mul(2))).requiresGrad).toBe(false)
        expect(w.mul(2).requiresGrad).toBe(true)
        expect(() =>
          noGrad(() => {
            throw new Error('mine')
          }),
        ).toThrow('mine')
        expect(w.mul(2).requiresGrad).toBe(true)
      })
      const flag = await noGrad(async () => {
        await sleep(1)
        return scope(() => w.mul(2).requiresGrad)
      })
      expect(flag).toBe(false)
    })
    w.dispose()
  })
})
