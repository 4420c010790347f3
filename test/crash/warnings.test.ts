// Not under sanitizers: what it counts are tensors, and the texts of warnings.
import { describe, expect, it } from 'vitest'
import { runChild } from '../support/child.js'
import { long } from '../support/numbers.js'

describe('one warning on standard error', () => {
  const tensors = 'more than 100,000 tensors are alive that are neither parameters, gradients nor kept'
  const forwards = 'more than 100 results of forwardWithGrad wait for their backward'
  const run = async (what: string, env: Record<string, string> = {}) => {
    const { code, stdout, stderr } = await runChild('warnings.mjs', [what], { nodeArgs: ['--expose-gc'], env })
    expect(code, stderr).toBe(0)
    expect(stdout).toBe('')
    return stderr
  }

  it.each([
    ['a loop without a scope', tensors],
    ['a loop in one scope', tensors],
    ['forwards without a backward', forwards],
  ])('of %s', async (what, text) => {
    const err = await run(what)
    expect(err.match(/.+/g)).toEqual([
      expect.stringMatching(/^\[st-moe\] warning: .* \(ST_MOE_NO_WARNINGS=1 silences this\)$/),
    ])
    expect(err).toContain(text)
    if (long || text === forwards) expect(await run(what, { ST_MOE_NO_WARNINGS: '1' })).toBe('')
  })

  it.each([
    'a loop with scopes',
    'kept tensors',
    'parameters and gradients',
    'state dicts and files',
    'forwards with a backward, or freed',
    'forwards that nobody holds',
  ])('but none of %s', async (what) => {
    expect(await run(what)).toBe('')
  })
})
