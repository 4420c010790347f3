import { describe, expect, it } from 'vitest'
import { MoeError, ones, Parameter, scope, Tensor, tensor } from '../../lib/index.js'
import { expectNoLeak, live, values } from '../support/baseline.js'

describe('lifetime', () => {
  it('using and dispose free at once; a second dispose does nothing', () => {
    expectNoLeak(() => {
      let outside: Tensor
      {
        using inside = ones([4])
        outside = inside
        expect(inside.disposed).toBe(false)
      }
      expect(outside.disposed).toBe(true)
      outside.dispose()
      expect(outside.toString()).toContain('disposed')
    })
  })

  it('every use of a disposed tensor is a DISPOSED error', () => {
    const gone = ones([2, 2])
    gone.dispose()
    const uses: ((t: Tensor) => unknown)[] = [
      (t) => t.add(1),
      (t) => ones([2, 2]).add(t),
      (t) => t.matmul(t),
      (t) => t.dataSync(),
      (t) => t.item(),
      (t) => t.detach(),
      (t) => t.clone(),
      (t) => t.reshape([4]),
      (t) => t.to('f64'),
      (t) => t.backward(),
      (t) => new Parameter(t),
    ]
    for (const use of uses) {
      expect(() => scope(() => use(gone))).toThrowError(expect.objectContaining({ code: 'DISPOSED' }))
    }
  })

  it('a promise of data survives disposal after the call', async () => {
    const x = tensor([1, 2, 3])
    const promise = x.data()
    x.dispose()
    expect(Array.from(await promise)).toEqual([1, 2, 3])
    await expect(x.data()).rejects.toMatchObject({ code: 'DISPOSED' })
  })

  it('data is a copy both ways', () => {
    scope(() => {
      const source = new Float32Array([1, 2])
      const x = tensor(source)
      source[0] = 9
      const copy = x.dataSync()
      copy[1] = 9
      expect(values(x)).toEqual([1, 2])
      expect(() => ((x.shape as number[])[0] = 5)).toThrow(TypeError)
    })
  })

  it('reshape and detach share memory, which lives as long as one of them', () => {
    expectNoLeak(() => {
      const x = tensor([1, 2, 3, 4])
      const { bytes } = live()
      const [view, twin] = [x.reshape([2, 2]), x.detach()]
      expect(live().bytes).toBe(bytes)
      x.dispose()
      twin.dispose()
      expect(live().bytes).toBe(bytes)
      expect(values(view)).toEqual([1, 2, 3, 4])
      view.dispose()
    })
  })

  it('a tensor cannot be made by hand, structured-cloned or proxied into an op', () => {
    scope(() => {
      const x = ones([2])
      expect(() => new (Tensor as unknown as new (...args: unknown[]) => Tensor)(1, 2, {})).toThrow(MoeError)
      const proxied = new Proxy(x, {})
      expect(() => x.add(proxied)).toThrow(MoeError)
      expect(() => x.add(Object.create(x) as Tensor)).toThrow(MoeError)
      expect(() => x.add(structuredClone({ shape: [2], dtype: 'f32' }) as never)).toThrow(MoeError)
    })
  })
})
