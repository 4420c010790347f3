import { describe, expect, test } from 'vitest'
import {
  Adafactor,
  AdamW,
  MoE,
  manualSeed,
  type Optimizer,
  Parameter,
  randn,
  SGD,
  scope,
  tensor,
} from '../../lib/index.js'
import { any } from '../support/bad-input.js'
import { relativeError, values } from '../support/numbers.js'

describe('gradients of micro-batches add up to those of the whole batch', () => {
  // Sequences are routed apart, each with its capacity, unless random numbers decide.
  test.each([{ secondPolicyTrain: 'all' } as const, { dropless: true, gatingTopN: 1 } as const])('%o', (options) =>
    scope(() => {
      manualSeed(4)
      const moe = new MoE({ dim: 8, numExperts: 4, dtype: 'f64', ...options })
      const [x, target] = [randn([6, 16, 8], { dtype: 'f64' }), randn([6, 16, 8], { dtype: 'f64' })]
      const loss = (from: number, to: number) => {
        const { outputs, totalAuxLoss } = moe.forward(x.slice(0, from, to))
        return outputs
          .sub(target.slice(0, from, to))
          .square()
          .mean()
          .add(totalAuxLoss)
      }
      const grads = (act: () => void) => {
        act()
        const found = [...moe.parameters()].map(({ grad }) => Array.from(values(grad!)))
        moe.zeroGrad()
        return found
      }
      const whole = grads(() => loss(0, 6).backward())
      const parts = grads(() => {
        for (const i of [0, 2, 4])
          scope(() =>
            loss(i, i + 2)
              .div(3)
              .backward(),
          )
      })
      for (const [i, grad] of whole.entries()) expect(relativeError(parts[i], grad)).toBeLessThan(1e-12)
    }),
  )
})

const makers: [string, (p: Parameter[]) => Optimizer][] = [
  ['AdamW', (p) => new AdamW(p)],
  ['SGD', (p) => new SGD(p, { momentum: 0.9 })],
  ['Adafactor', (p) => new Adafactor(p, { beta1: 0.9 })],
]

describe.each(makers)('a step of %s with gradients that are not finite', (_, make) => {
  const start = () => {
    const parameters = [new Parameter(tensor([1, 2])), new Parameter(tensor(Float64Array.of(3, 4), [1, 2]))]
    const optimizer = make(parameters)
    const give = (bad: number) => {
      parameters[0].grad = tensor([1, -1])
      parameters[1].grad = tensor(Float64Array.of(1, bad), [1, 2])
    }
    const state = () =>
      scope(() => [
        parameters.map((p) => Array.from(values(p))),
        Object.entries(optimizer.stateDict()).map(([name, value]) => [name, Array.from(value.dataSync())]),
      ])
    return { optimizer, give, state }
  }

  test.each([Number.NaN, Infinity, -Infinity])('%d', (bad) => {
    const { optimizer, give, state } = start()
    const fresh = state()
    give(bad)
    expect(optimizer.step({ onNonFinite: 'skip' })).toBe(false)
    expect(state()).toEqual(fresh)
    expect(optimizer.skipped).toBe(1)
    give(1e300) // whose square overflows
    expect(optimizer.step({ onNonFinite: 'skip' })).toBe(true)
    const after = state()
    expect(after).not.toEqual(fresh)
    give(bad)
    expect(optimizer.step({ onNonFinite: 'skip' })).toBe(false)
    expect(() => optimizer.step({ onNonFinite: 'throw' })).toThrow(
      expect.objectContaining({ code: 'NON_FINITE', message: expect.stringMatching(/all gradients must be finite/) }),
    )
    expect(state()).toEqual(after)
    expect(optimizer.skipped).toBe(2)
    expect(optimizer.step()).toBe(true)
    expect(optimizer.skipped).toBe(2)
    expect(state()).not.toEqual(after)
  })
})

test('a step checks its options', () => {
  expect(() => new SGD([new Parameter(tensor([1]))]).step({ onNonFinite: any('no') })).toThrow(
    "[SGD.step] onNonFinite must be one of 'propagate', 'throw', 'skip', got \"no\"",
  )
})
