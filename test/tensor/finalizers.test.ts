import { describe, expect, test } from 'vitest'
import { keep, memory, ones, scope, type Tensor } from '../../lib/index.js'
import { collectGarbage } from '../support/garbage.js'

// Tensors that a program forgets. In a scope they need no finalizer, as long as the scope is sure to end.

const never = new Promise<never>(() => {})

const forgotten: [string, () => unknown][] = [
  ['outside of scopes', () => ones([4])],
  ['that a scope returned', () => scope(() => [ones([4]), { y: ones([4]) }])],
  ['that a scope in a scope returned', () => scope(() => scope(() => ones([4])))],
  ['that were kept in a scope', () => scope(() => void keep(ones([4])))],
  ['that became a gradient in a scope', () => gradient()],
]

/** In a function of its own, so that nothing refers to it. */
function gradient(): void {
  const x = ones([4])
  x.requiresGrad = true
  scope(() => x.square().sum().backward())
}

/** The scope stays in no variable: with its promise, all of it is unreachable. */
function neverEnding(inside: (x: Tensor) => unknown): void {
  scope(async () => {
    const x = ones([4])
    await null
    inside(x)
    const local = new Promise(() => {})
    await local
    x.dispose()
  })
}

/** Less is left if the collector had been late with a tensor of an earlier test. */
async function expectCollected(before: { tensors: number; bytes: number }): Promise<void> {
  await collectGarbage()
  const { tensors, bytes } = memory()
  expect(tensors).toBeLessThanOrEqual(before.tensors)
  expect(bytes).toBeLessThanOrEqual(before.bytes)
}

describe('the collector frees tensors', () => {
  test.each(forgotten)('%s', async (_, forget) => {
    await collectGarbage()
    const { tensors, bytes } = memory()
    forget()
    expect(memory().tensors).toBeGreaterThan(tensors)
    await expectCollected({ tensors, bytes })
  })

  test.each<[string, (x: Tensor) => unknown]>([
    ['before it waits', () => {}],
    ['after it has waited', (x) => x.mul(2)],
    ['in a scope inside of it', (x) => scope(() => x.mul(2))],
  ])('of an asynchronous scope that never ends: made %s', async (_, inside) => {
    await collectGarbage()
    const { tensors, bytes } = memory()
    neverEnding(inside)
    await null
    await null
    expect(memory().tensors).toBeGreaterThan(tensors)
    await expectCollected({ tensors, bytes })
  })
})

test('a scope that waits holds its tensors', async () => {
  const { tensors } = memory()
  let x: Tensor | undefined
  void scope(async () => {
    x = ones([4])
    await never
  })
  await collectGarbage()
  expect(memory().tensors).toBe(tensors + 1)
  x?.dispose()
  expect(memory().tensors).toBe(tensors)
})
