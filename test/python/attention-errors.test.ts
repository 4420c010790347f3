import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { getDefaultDevice, loadSafetensorsSync, ops, scope } from '../../lib/index.js'
import { relativeError, runSeed, values } from '../support/numbers.js'
import { pythonFor, pythonPatience, referencePython, runScript } from '../support/python.js'
import { filesIn } from '../support/python-answers.js'

const seed = runSeed()

test(`gradients of attention in f32 have at most the error of PyTorch's (seed ${seed})`, {
  timeout: pythonPatience,
}, (context) => {
  const python = pythonFor(context, referencePython())
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-attention-'))
  try {
    runScript(python, 'attention_errors.py', 'draw', String(seed), folder)
    const ratios = filesIn(folder).flatMap((file) =>
      scope(() => {
        const { tensors, metadata } = loadSafetensorsSync(join(folder, file))
        const { q, k, v, dy, ...wanted } = tensors
        for (const leaf of [q, k, v]) leaf.requiresGrad = true
        ops.attention(q, k, v, JSON.parse(metadata.options)).mul(dy).sum().backward()
        const own = [q, k, v].map(({ grad }, i) => relativeError(values(grad!), values(wanted[['dq', 'dk', 'dv'][i]])))
        return own.map((error, i) => [error, JSON.parse(metadata.errors)[i]])
      }),
    )
    expect(ratios.length).toBe(300)
    const logs = ratios.filter((pair) => Math.min(...pair) > 0).map(([own, other]) => Math.log(own / other))
    expect(Math.exp(logs.reduce((sum, value) => sum + value) / logs.length)).toBeLessThan(
      getDefaultDevice() === 'cpu' ? 1.1 : 1.5,
    )
  } finally {
    rmSync(folder, { recursive: true })
  }
})
