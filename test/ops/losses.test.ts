import { afterEach, describe, expect, test } from 'vitest'
import {
  binaryCrossEntropyWithLogits,
  crossEntropy,
  huberLoss,
  klDiv,
  mseLoss,
  ones,
  randn,
  scope,
  smoothL1Loss,
  tensor,
  zeros,
} from '../../lib/index.js'
import { live } from '../support/baseline.js'
import { listOf, relativeError } from '../support/numbers.js'

// test/python/answers.test.ts compares values and gradients with those of PyTorch.

const i32 = (...numbers: number[]) => tensor(Int32Array.from(numbers))

test('reductions, and rows that do not count', () =>
  scope(() => {
    const logits = randn([4, 5], { dtype: 'f64' })
    const targets = i32(1, -100, 4, 0)
    for (const labelSmoothing of [0, 0.3]) {
      const [mean, sum] = (['mean', 'sum'] as const).map((reduction) =>
        crossEntropy(logits, targets, { labelSmoothing, reduction }).item(),
      )
      const each = listOf(crossEntropy(logits, targets, { labelSmoothing, reduction: 'none' }))
      expect(each[1]).toBe(0)
      expect(relativeError([mean, sum], [sum / 3, each.reduce((a, b) => a + b)])).toBeLessThan(1e-15)
      const ignored = { ignoreIndex: 2, labelSmoothing, reduction: 'mean' } as const
      expect(crossEntropy(logits, i32(2, 2, 2, 2), ignored).item()).toBe(0)
    }
  }))

test('logits of any size have finite losses and gradients', () =>
  scope(() => {
    const x = tensor([-1e30, -200, 0, 200, 1e30], null, { requiresGrad: true })
    const loss = binaryCrossEntropyWithLogits(x, tensor([0, 1, 0.5, 0, 1]), { reduction: 'none' })
    expect(relativeError(listOf(loss), [0, 200, Math.LN2, 200, 0])).toBeLessThan(1e-7)
    loss.sum().backward()
    expect(listOf(x.grad!).map((d) => d + 0)).toEqual([0, -1, 0, 1, 0])
  }))

test('a target of 0 has no divergence, and a finite gradient', () =>
  scope(() => {
    const input = tensor([-1, -2], null, { requiresGrad: true })
    const target = tensor([0, 1], null, { requiresGrad: true })
    const losses = klDiv(input, target, { reduction: 'none' })
    expect(listOf(losses).map((x) => x + 0)).toEqual([0, 2])
    losses.sum().backward()
    expect([...listOf(input.grad!), ...listOf(target.grad!)].every(Number.isFinite)).toBe(true)
  }))

test('no rows have a divergence of 0', () =>
  scope(() => expect(klDiv(zeros([0, 3]), zeros([0, 3]), { reduction: 'batchmean' }).item()).toBe(0)))

describe('errors leave nothing behind', () => {
  const x = randn([2, 3])
  const targets = i32(0, 2)
  const before = live()
  afterEach(() => expect(live()).toEqual(before))
  const wrong: [string, () => unknown, string, RegExp][] = [
    [
      'a reduction',
      () => mseLoss(x, x, { reduction: 'max' as never }),
      'OPTION',
      /^\[mseLoss\] reduction must be one of 'mean', 'sum', 'none', got "max"/,
    ],
    [
      'batchmean of another loss',
      () => crossEntropy(x, targets, { reduction: 'batchmean' as never }),
      'OPTION',
      /^\[crossEntropy\] reduction/,
    ],
    [
      'too much smoothing',
      () => crossEntropy(x, targets, { labelSmoothing: 2 }),
      'OPTION',
      /^\[crossEntropy\] labelSmoothing must be a finite number from 0 to 1, got 2/,
    ],
    ['a target outside', () => crossEntropy(x, i32(0, 3), { reduction: 'sum' }).item(), 'OPTION', /index .*3/],
    ['no delta', () => huberLoss(x, x, { delta: 0 }), 'OPTION', /^\[huberLoss\] delta must be above 0, got 0/],
    [
      'a negative beta',
      () => smoothL1Loss(x, x, { beta: -1 }),
      'OPTION',
      /^\[smoothL1Loss\] beta must be a finite number from 0/,
    ],
    ['another shape', () => klDiv(x, zeros([3])), 'SHAPE', /^\[klDiv\] target must be \[2, 3\], got \[3\]/],
    [
      'the batch of a number',
      () => klDiv(tensor(1), tensor(1), { reduction: 'batchmean' }),
      'SHAPE',
      /^\[klDiv\] reduction 'batchmean'/,
    ],
    [
      'a weight that is too large',
      () => binaryCrossEntropyWithLogits(x, x, { posWeight: ones([4, 2, 3]) }),
      'SHAPE',
      /^\[binaryCrossEntropyWithLogits\] posWeight must broadcast to \[2, 3\], got \[4, 2, 3\]/,
    ],
    [
      'a weight that is too large, of as many axes',
      () => binaryCrossEntropyWithLogits(ones([1, 3]), ones([1, 3]), { posWeight: ones([2, 3]) }),
      'SHAPE',
      /^\[binaryCrossEntropyWithLogits\] posWeight must broadcast to \[1, 3\], got \[2, 3\]/,
    ],
  ]
  test.each(wrong)('%s', (_what, call, code, message) => {
    expect(() => scope(call)).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }))
  })
})
