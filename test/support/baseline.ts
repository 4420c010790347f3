import { expect } from 'vitest'
import { memory, type Tensor } from '../../lib/index.js'

/** Live tensors and bytes of this environment. */
export const live = (): { tensors: number; bytes: number } => {
  const { tensors, bytes } = memory()
  return { tensors, bytes }
}

/** Runs `fn` and expects that it left nothing behind. */
export function expectNoLeak<T>(fn: () => T): T {
  const before = live()
  const result = fn()
  expect(live()).toEqual(before)
  return result
}

export async function expectNoLeakAsync<T>(fn: () => Promise<T>): Promise<T> {
  const before = live()
  const result = await fn()
  expect(live()).toEqual(before)
  return result
}

export const values = (tensor: Tensor | null): number[] => Array.from(tensor!.dataSync())
