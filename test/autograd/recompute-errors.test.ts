import { afterEach, describe, expect, test } from 'vitest'
import { Dropout, dropout, Linear, memory, randn, recompute, scope, type Tensor, tensor } from '../../lib/index.js'
import { any } from '../support/bad-input.js'

describe('what would compute other gradients is an error that changes nothing', () => {
  const layer = new Linear(3, 3)
  const drop = new Dropout(0.5)
  afterEach(() => {
    layer.zeroGrad()
    drop.train()
  })
  let calls = 0
  const cases: [string, (x: Tensor) => Tensor, () => void, RegExp][] = [
    [
      'a changed parameter',
      (x) => recompute(layer, [x]),
      () => layer.weight.copyFrom(new Float32Array(9)),
      /changed in place/,
    ],
    ['a changed input', (x) => recompute(layer, [x]), () => {}, /changed in place/],
    [
      'evaluation',
      (x) => recompute(drop, [x]),
      () => drop.eval(),
      /\[recompute\] the block has changed between training and evaluation/,
    ],
    [
      'evaluation of a module in a function',
      (x) => recompute((x: Tensor) => recompute((x: Tensor) => drop.forward(x), [x]), [x]),
      () => drop.eval(),
      /\[recompute\] the block has changed between training and evaluation/,
    ],
    [
      'more random numbers',
      (x) => recompute((x: Tensor) => (calls++ ? dropout(x, 0.1).mul(randn([3])) : dropout(x, 0.1)), [x]),
      () => {},
      /samples more random numbers the second time/,
    ],
    [
      'fewer random numbers',
      (x) => recompute((x: Tensor) => (calls++ ? x.mul(2) : dropout(x, 0.1)), [x]),
      () => {},
      /samples fewer random numbers the second time/,
    ],
    [
      'another shape',
      (x) => recompute((x: Tensor) => (calls++ ? x.mul(2).sum() : x.mul(2)), [x]),
      () => {},
      /returns other tensors the second time/,
    ],
    [
      'another dtype',
      (x) => recompute((x: Tensor) => (calls++ ? x.to('f64') : x.mul(2)), [x]),
      () => {},
      /returns other tensors the second time/,
    ],
    [
      'another order',
      (x) => {
        const both = (x: Tensor) => [x.mul(2), x.mul(3)]
        return recompute((x: Tensor) => (calls++ ? both(x).reverse() : both(x)), [x])[0]
      },
      () => {},
      /returns other tensors the second time/,
    ],
    [
      'nothing',
      (x) => recompute((x: Tensor) => (calls++ ? any(null) : x.mul(2)), [x]),
      () => {},
      /returns other tensors/,
    ],
    [
      'an exception',
      (x) => recompute((x: Tensor) => (calls++ ? any(null).mul : x.mul(2)), [x]),
      () => {},
      /Cannot read properties of null/,
    ],
  ]
  test.each(cases)('%s', (name, make, change, text) => {
    const before = memory().tensors
    scope(() => {
      calls = 0
      const x = randn([2, 3], { requiresGrad: true })
      const y = make(x)
      change()
      if (name === 'a changed input')
        x.copyFrom([
          [1, 2, 3],
          [4, 5, 6],
        ])
      expect(() => y.sum().backward()).toThrow(text)
      expect([x.grad, layer.weight.grad]).toEqual([null, null])
    })
    expect(memory().tensors).toBe(before)
  })

  test('but a block may change the mode itself', () =>
    scope(() => {
      const x = tensor([1, 2], null, { requiresGrad: true })
      recompute((x: Tensor) => drop.train().forward(drop.eval().forward(x)), [x])
        .sum()
        .backward()
      expect(x.grad).not.toBeNull()
    }))

  test.each<[string, () => unknown, RegExp]>([
    ['no block', () => recompute(any({}), []), /block must be a function, or a module with a forward, got an object/],
    ['no inputs', () => recompute(layer, any(randn([2, 3]))), /inputs must be an array, got Tensor/],
    ['an async block', () => recompute(async () => 1, []), /the block must not be async/],
    [
      'a disposed input',
      () => {
        const x = randn([2, 3])
        x.dispose()
        recompute(layer, [x])
      },
      /input has been disposed/,
    ],
  ])('%s', (_, act, text) => {
    expect(act).toThrow(text)
  })
})
