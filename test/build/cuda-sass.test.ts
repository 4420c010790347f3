import { expect, test } from 'vitest'
import { countsOf } from '../../scripts/cuda-sass.mjs'

// Machine code as nvdisasm prints it, counted by hand.

const listing = (...lines: string[]): string =>
  lines
    .map((line, i) => (line.endsWith(':') ? line : `        /*${(16 * i).toString(16).padStart(4, '0')}*/    ${line} ;`))
    .join('\n')

test('of the loop that accesses most memory, the path with its accesses in the fewest instructions', () => {
  const text = listing(
    'LDG.E R1, desc[UR4][R2.64]', // before the loops
    '.L_x_1:',
    'LDG.E R4, desc[UR4][R2.64]', // a small loop
    '@P0 BRA `(.L_x_1)',
    '.L_x_2:',
    '@!P0 LDG.E.128 R4, desc[UR4][R2.64]',
    '@P1 BRA `(.L_x_3)', // leaves the loop's work out
    'LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x10]',
    'FADD R4, R4, R8',
    '@!P2 BRA `(.L_x_4)', // the slow path of a division
    'MOV R5, R6',
    'CALL.REL.NOINC `($__internal_0)',
    '.L_x_4:',
    'STG.E.64 desc[UR4][R2.64], R4',
    'STG.E.U16 desc[UR4][R2.64], R4',
    '.L_x_3:',
    'IADD3 R2, R2, 0x10, RZ',
    '@P3 BRA `(.L_x_2)',
    'EXIT',
  )
  expect(countsOf(text)).toEqual({ instructions: 9, read: 32, write: 10, local: 0 })
})

test('without a loop, the whole kernel up to its end; every access to local memory', () => {
  const text = listing(
    '@P0 EXIT',
    'STL.64 [R1], R2',
    'LDG.E.U8 R1, desc[UR4][R2.64]',
    'LDL R4, [R1]',
    'STG.E.64 desc[UR4][R2.64], R4',
    'EXIT',
    'LDG.E.U8 R1, desc[UR4][R2.64]', // nothing comes here
  )
  expect(countsOf(text)).toEqual({ instructions: 6, read: 1, write: 8, local: 2 })
})

test('a kernel without accesses', () => {
  expect(countsOf(listing('EXIT'))).toEqual({ instructions: 1, read: 0, write: 0, local: 0 })
})
