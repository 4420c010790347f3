import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { loadSafetensorsSync, loadTransformersMoE, saveSafetensorsSync, scope } from '../../lib/index.js'
import { relativeError, values } from '../support/numbers.js'
import { expectGradients } from '../support/transformers-gradients.js'

// Layers of open models as transformers wrote and computed them; test/golden/README.md. parity.test.ts runs it again.

const folder = fileURLToPath(new URL('../golden/transformers', import.meta.url))
const files = readdirSync(folder)
const limits = { f32: { forward: 1e-5, gradient: 1e-4 }, f64: { forward: 1e-6, gradient: 1e-6 } }

test('there are two cases of each model type', () => expect(files.length).toBe(16))

test.each(files)('%s', (file) =>
  scope(() => {
    const { tensors, metadata } = loadSafetensorsSync(join(folder, file))
    const { x, y, dx, ...others } = tensors
    const layer = Object.fromEntries(Object.entries(others).filter(([name]) => !name.startsWith('grad.')))
    const model = mkdtempSync(join(tmpdir(), 'st-moe-golden-'))
    try {
      writeFileSync(join(model, 'config.json'), metadata.config)
      saveSafetensorsSync(join(model, 'model.safetensors'), layer)
      for (const [dtype, limit] of Object.entries(limits)) {
        const moe = loadTransformersMoE(model, { layer: 1, dtype: dtype as 'f32' | 'f64' })
        const input = x.to(dtype as 'f32').to(moe.gate.toGates.weight.device)
        input.requiresGrad = true
        const { outputs } = moe.forward(input)
        outputs.square().sum().backward()
        expect(relativeError(values(outputs), values(y)), dtype).toBeLessThan(limit.forward)
        expect(relativeError(values(input.grad!), values(dx)), `${dtype}, gradient`).toBeLessThan(limit.gradient)
        expectGradients(model, moe, tensors, limit.gradient)
      }
    } finally {
      rmSync(model, { recursive: true })
    }
  }),
)
