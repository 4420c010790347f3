import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect } from 'vitest'
import { loadSafetensorsSync, type MoE, saveTransformersMoE, type Tensor, zeros } from '../../lib/index.js'
import { listOf, relativeError, values } from './numbers.js'

const norm = (x: Tensor): number => Math.hypot(...listOf(x))

/** Compares the gradients of a layer 1 with those of transformers, which have the names of its file after `grad.`. */
export function expectGradients(
  model: string,
  moe: MoE,
  tensors: Readonly<Record<string, Tensor>>,
  limit: number,
): void {
  const wanted = Object.entries(tensors).filter(([name]) => name.startsWith('grad.'))
  expect(wanted.length).toBeGreaterThan(2)
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-gradients-'))
  try {
    cpSync(model, folder, { recursive: true })
    for (const parameter of moe.parameters()) parameter.copyFrom(parameter.grad ?? zeros(parameter.shape))
    saveTransformersMoE(folder, moe, { layer: 1 })
    const found = loadSafetensorsSync(join(folder, 'model.safetensors')).tensors
    const largest = Math.max(...wanted.map(([, value]) => norm(value)))
    for (const [name, value] of wanted) {
      const ours = found[name.slice('grad.'.length)]
      // A router whose only gate is 1 learns nothing: what transformers has there is rounding.
      const none = norm(value) < 1e-6 * largest
      const error = none ? norm(ours) / largest : relativeError(values(ours), values(value))
      expect(error, name).toBeLessThan(limit)
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
}
