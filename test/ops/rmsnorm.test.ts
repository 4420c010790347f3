import { describe, expect, test } from 'vitest'
import { ones, randn, rmsNorm, scope, type Tensor, zeros } from '../../lib/index.js'
import { relativeError, values } from '../support/numbers.js'

describe.each([7, 64, 1200])('RMSNorm of rows of %d numbers of any size, against f64', (D) => {
  const sizes = [1e-40, 1e-30, 1e-20, 1e-13, 1e-9, 1, 1e15, 1e19, 1e20, 1e22, 1e24, 1e30, 3e37]

  test.each([false, true])('values and gradients, with a gradient of x from elsewhere: %s', (residual) =>
    scope(() => {
      for (const size of sizes) {
        const x = randn([3, D]).mul(size)
        const [gamma, dy] = [randn([D]).add(2), randn([3, D]).mul(1e3)]
        const other = randn([3, D]).mul(1e3 / Math.max(size, 1e-12))
        const run = (dtype: 'f32' | 'f64') => {
          const [a, g] = [x, gamma].map((given) => {
            const leaf = given.to(dtype).clone().detach()
            leaf.requiresGrad = true
            return leaf as Tensor
          })
          const y = rmsNorm(a, g)
          const loss = y.mul(dy.to(dtype)).sum()
          ;(residual ? loss.add(a.mul(other.to(dtype)).sum()) : loss).backward()
          return { y, dx: a.grad!, dgamma: g.grad! }
        }
        const [single, double] = [run('f32'), run('f64')]
        for (const name of ['y', 'dx', 'dgamma'] as const)
          expect(relativeError(values(single[name]), values(double[name])), `${size} ${name}`).toBeLessThan(1e-6)
      }
    }),
  )

  test('below 1e-12 it is x γ √D / 1e-12, and so is its gradient', () =>
    scope(() => {
      for (const dtype of ['f32', 'f64'] as const)
        for (const size of [1e-15, 1e-30]) {
          const x = randn([2, D], { dtype }).mul(size).detach()
          x.requiresGrad = true
          const [gamma, dy] = [randn([D], { dtype }), randn([2, D], { dtype })]
          rmsNorm(x, gamma).mul(dy).sum().backward()
          const wanted = dy.mul(gamma).mul(Math.sqrt(D) * 1e12)
          expect(relativeError(values(x.grad!), values(wanted))).toBeLessThan(dtype === 'f32' ? 1e-6 : 1e-14)
        }
    }))

  test('the gradient of a row of zeros is 0', () =>
    scope(() => {
      const x = zeros([2, D], { requiresGrad: true })
      rmsNorm(x, ones([D]))
        .sum()
        .backward()
      expect(Array.from(values(x.grad!))).toEqual(new Array(2 * D).fill(0))
      x.grad = null
      const y = rmsNorm(x, ones([D]))
      y.add(x.mul(3)).sum().backward() // what else uses the row counts
      expect(Array.from(values(x.grad!))).toEqual(new Array(2 * D).fill(3))
    }))
})
