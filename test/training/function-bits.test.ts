import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { root } from '../support/blocks.js'
import { runChild } from '../support/child.js'

// The functions in float32 have the same bits with every C library and compiler: those of test/golden/function-bits.json. After a
// change of a formula UPDATE_BITS=1 prints the new ones.

const onDevice = process.env.ST_MOE_TEST_DEVICE !== undefined // a GPU has formulas of its own
const names = Array.from(
  readFileSync(join(root, 'native/core/unary_kinds.inc'), 'utf8').matchAll(/^UNARY\((\w+),/gm),
  ([, name]) => name!,
)
const recorded: Record<string, Record<string, string>> = JSON.parse(
  readFileSync(join(root, 'test/golden/function-bits.json'), 'utf8'),
)

describe.skipIf(onDevice)('a million float32 values of every function, and their gradients', () => {
  it.each(['baseline', 'avx2', 'avx512'])('have the bits that were recorded: %s', async (isa) => {
    const { code, stdout, stderr } = await runChild('function-bits.mjs', names, { env: { ST_MOE_ISA: isa } })
    if (stderr.includes('[st-moe] ST_MOE_ISA must be one of ')) return // this machine lacks it
    expect([code, stderr]).toEqual([0, ''])
    const { variant, hashes } = JSON.parse(stdout)
    expect(variant).toBe(isa)
    if (process.env.UPDATE_BITS) console.log(JSON.stringify({ [`${process.arch} ${isa}`]: hashes }, null, 2))
    expect(Object.keys(hashes)).toEqual(expect.arrayContaining(names))
    const wanted = recorded[`${process.arch} ${isa}`]
    if (process.arch === 'x64') expect(Object.keys(wanted ?? {}).length).toBeGreaterThanOrEqual(16)
    if (wanted) expect(hashes).toMatchObject(wanted)
  })
})
