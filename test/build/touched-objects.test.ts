import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { touchedObjects } from '../../scripts/touched-objects.mjs'
import { root } from '../support/blocks.js'

// A change of a declaration compiles what it touches, by the dependency files of the last build: the kernels of its
// subject, for three instruction sets, and what knows every op: the tables, core and the binding.

const isBuilt = existsSync(join(root, 'build/CMakeFiles/st_moe.dir'))

test.skipIf(!isBuilt).each([
  ['unary_kinds.inc', ['unary'], 12],
  ['binary_kinds.inc', ['binary'], 12],
  ['activations.inc', ['expert_ffn', 'expert_ffn_backward'], 12],
  ['optimizers.h', ['adafactor', 'optimizers'], 12],
  ['ops/optimizers.inc', ['adafactor', 'optimizers'], 30],
  ['ops/attention.inc', ['attention', 'cached_attention', 'rotary'], 35],
  ['ops/reductions.inc', ['clip_norm', 'extremum', 'norm', 'reduce'], 40],
])('a line of %s compiles the kernels of %j again, and at most %i objects', (file, kernels, most) => {
  const objects = touchedObjects(`native/core/${file}`)
  const isBase = /\/(backend|bf16_tables|table)\.cc\.o/
  const names = objects.filter((object) => object.includes('/native/cpu/') && !isBase.test(object))
  const compiled = new Set(names.map((object) => /(\w+)\.cc\.o/.exec(object)?.[1]))
  expect([...compiled].sort()).toEqual([...kernels].sort())
  expect(objects.length).toBeLessThanOrEqual(most)
})

test.skipIf(!isBuilt)('a line of the ops of mixture of experts leaves the kernels of other layers alone', () => {
  const objects = touchedObjects('native/core/ops/moe.inc').join('\n')
  for (const kernel of ['route', 'expert_ffn', 'combine', 'topk']) expect(objects).toContain(`/${kernel}.cc.o`)
  for (const kernel of ['attention', 'gemm', 'linear', 'optimizers', 'softmax', 'unary'])
    expect(objects).not.toContain(`/${kernel}.cc.o`)
})
