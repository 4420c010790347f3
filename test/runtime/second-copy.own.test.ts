import { expect, test, vi } from 'vitest'
import * as st from '../../lib/index.js'

// Two copies of the package in one program, each with classes and memory of its own. In a file of its own: the addon is
// one here, and makes the errors of the copy that came last.

// biome-ignore lint/suspicious/noExplicitAny: wrong on purpose
const any = (value: unknown): any => value

test('objects of another copy of the package', async () => {
  vi.resetModules()
  const other: typeof st = await import('../../lib/index.js')
  const linear = new st.Linear(6, 4)
  const elsewhere = /got (\w+) of another copy of st-moe; `npm ls st-moe` shows where it is/
  for (const wrong of [
    () => linear.forward(any(other.ones([1, 6]))),
    () => new st.AdamW(any(new other.Linear(2, 2).parameters())),
    () => new st.SparseMoEBlock(any(new other.MoE({ dim: 6, numExperts: 3 }))),
    () => new st.MoE({ dim: 6, experts: any([1, 2].map(() => new other.Linear(6, 6))) }),
    () => st.rand([2], { generator: any(new other.Generator()) }),
    () =>
      st.saveCheckpoint('nowhere', {
        model: linear,
        step: 1,
        optimizer: any(new other.SGD(new other.Linear(1, 1).parameters(), { lr: 1 })),
      }),
  ]) {
    await expect((async () => wrong())()).rejects.toThrow(elsewhere)
  }
  expect(() => linear.forward(any({ shape: [1, 6] }))).toThrow(/must be a Tensor, got an object$/)
  expect(() => new st.AdamW(any([st.randn([2])]))).toThrow(/must be a Parameter, got Tensor$/)
})
