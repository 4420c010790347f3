import { describe, expect, test } from 'vitest'
import { Linear, MoE, MoeError, type MoeErrorCode, randn, SparseMoEBlock, scope } from '../../lib/index.js'
import { settled } from './faults.js'

/** What a program may get wrong, the code of the error, and what its text says: operation, argument, expected, got. */
export type Row = [what: string, run: () => unknown, code: MoeErrorCode, text: string | RegExp]

export const moe = new MoE({ dim: 6, numExperts: 3 })
export const block = new SparseMoEBlock(new MoE({ dim: 6, numExperts: 3 }))
export const linear = new Linear(6, 4)
export const input = randn([2, 5, 6])

// biome-ignore lint/suspicious/noExplicitAny: wrong on purpose
export const any = (value: unknown): any => value
export const withOptions = (options: object) => () => new MoE(any({ dim: 6, numExperts: 3, ...options }))
export const forwardWith = (options: object) => () => moe.forward(input, any(options))

/** A test per row, and one that the layers still work after them. */
export function testErrors(groups: Record<string, readonly Row[]>): void {
  describe.each(Object.entries(groups))('%s', (_, rows) => {
    test.each(rows)('%s', (_what, run, code, text) => {
      let caught: unknown
      scope(() => {
        try {
          settled(run)
        } catch (error) {
          caught = error
        }
      })
      expect(caught).toBeInstanceOf(MoeError)
      const { code: actual, message, op } = caught as MoeError
      expect(message).toMatch(text)
      expect(actual).toBe(code)
      expect(message.startsWith(`[${op}] `)).toBe(true)
    })
  })

  test('after all that the layers still work', () => {
    expect(scope(() => moe.forward(input).outputs.shape)).toEqual([2, 5, 6])
    expect(scope(() => block.forward(input).outputs.shape)).toEqual([2, 5, 6])
  })
}
