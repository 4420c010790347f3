import { beforeEach, expect, test, vi } from 'vitest'

// The addon is loaded at the first native call: what a program sees where that fails, or finds one of another build.

vi.mock(import('../../lib/runtime/addon.js'), async (original) => {
  const real = await original()
  return { ...real, loadAddon: vi.fn(real.loadAddon) }
})

beforeEach(() => {
  vi.resetModules()
  vi.clearAllMocks()
})

test('an import loads nothing; a call that fails is tried again', async () => {
  const { ones } = await import('../../lib/index.js')
  const load = vi.mocked((await import('../../lib/runtime/addon.js')).loadAddon)
  expect(load).not.toHaveBeenCalled()
  load.mockImplementationOnce(() => {
    throw new Error('no addon')
  })
  expect(() => ones([2])).toThrow('no addon')
  expect(ones([2]).dataSync()).toEqual(Float32Array.of(1, 1))
  ones([3])
  expect(load).toHaveBeenCalledTimes(2)
})

test.each(['unaryKinds', 'binaryKinds', 'activations'])('an addon with other %s is of another build', async (list) => {
  const { ones } = await import('../../lib/index.js')
  const { loadAddon: load } = await import('../../lib/runtime/addon.js')
  const { addon, file } = load()
  const other = { ...(addon as object), [list]: () => [...(addon as Record<string, () => string[]>)[list](), 'other'] }
  vi.mocked(load).mockReturnValueOnce({ addon: other, file })
  expect(() => ones([2])).toThrow(/^\[st-moe\] .* is of another build of st-moe than its JavaScript/)
})
