import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { getDefaultDevice, loadSafetensorsSync, ops, scope } from '../../lib/index.js'
import { relativeError, runSeed, values } from '../support/numbers.js'
import { pythonFor, pythonPatience, referencePython, runScript } from '../support/python.js'

const seed = runSeed()
const timeout = pythonPatience

/** Of the files in a folder: the error of each gradient in f32, ours and that of PyTorch. */
const errorsIn = (folder: string): [number, number][] =>
  readdirSync(folder).flatMap((file) =>
    scope(() => {
      const { tensors, metadata } = loadSafetensorsSync(join(folder, file))
      const { q, k, v, dy, ...wanted } = tensors
      for (const leaf of [q, k, v]) leaf.requiresGrad = true
      ops.attention(q, k, v, JSON.parse(metadata.options)).mul(dy).sum().backward()
      const theirs: number[] = JSON.parse(metadata.errors)
      return [q, k, v].map(({ grad }, i): [number, number] => {
        const own = relativeError(values(grad!), values(wanted[['dq', 'dk', 'dv'][i]]))
        return [own, theirs[i]]
      })
    }),
  )

test(`gradients of attention in f32 have at most the error of PyTorch's (seed ${seed})`, { timeout }, (context) => {
  const python = pythonFor(context, referencePython())
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-errors-'))
  try {
    runScript(python, 'attention_errors.py', 'draw', String(seed), folder)
    const errors = errorsIn(folder)
    expect(errors.length).toBe(300)
    const logs = errors.filter((pair) => Math.min(...pair) > 0).map(([own, theirs]) => Math.log(own / theirs))
    const mean = Math.exp(logs.reduce((sum, value) => sum + value) / logs.length)
    expect(mean).toBeLessThan(getDefaultDevice() === 'cpu' ? 1.1 : 1.5)
  } finally {
    rmSync(folder, { recursive: true })
  }
})
