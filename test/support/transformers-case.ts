import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  loadSafetensorsSync,
  loadTransformersMoE,
  type MoE,
  type StateDict,
  saveSafetensorsSync,
  saveTransformersMoE,
  type Tensor,
  zeros,
} from '../../lib/index.js'
import { type Case, compareWith, type Finding, type Float, findingsOf, type Limits } from './golden-case.js'
import { listOf, relativeError, values } from './numbers.js'

const limits: Limits = { f32: { forward: 1e-5, gradient: 1e-4 }, f64: { forward: 1e-6, gradient: 1e-6 } }

/** Compares a layer of an open model, as transformers wrote and computed it. */
export function checkTransformersCase(path: string, dtype: Float): Finding[] {
  return findingsOf(path, dtype, limits, (golden) => {
    const model = mkdtempSync(join(tmpdir(), 'st-moe-answers-'))
    try {
      checkLayer(golden, model)
    } finally {
      rmSync(model, { recursive: true })
    }
  })
}

function checkLayer(golden: Case, model: string): void {
  const { tensors, metadata, dtype } = golden
  const { x, y, dx, ...others } = tensors
  const layer = Object.entries(others).filter(([name]) => !name.startsWith('grad.'))
  writeFileSync(join(model, 'config.json'), metadata.config)
  saveSafetensorsSync(join(model, 'model.safetensors'), Object.fromEntries(layer))
  const moe = loadTransformersMoE(model, { layer: 1, dtype })
  const input = x.to(dtype).to(moe.gate.toGates.weight.device)
  input.requiresGrad = true
  const { outputs } = moe.forward(input)
  outputs.square().sum().backward()
  compareWith(golden, 'forward', 'y', values(outputs), y)
  compareWith(golden, 'gradient', 'dx', values(input.grad!), dx)
  compareGradients(golden, savedGradients(model, moe))
}

/** The gradients of the parameters under the names of the file: written in their place. */
function savedGradients(model: string, moe: MoE): StateDict {
  for (const parameter of moe.parameters()) parameter.copyFrom(parameter.grad ?? zeros(parameter.shape))
  saveTransformersMoE(model, moe, { layer: 1 })
  return loadSafetensorsSync(join(model, 'model.safetensors')).tensors
}

const norm = (x: Tensor): number => Math.hypot(...listOf(x))

function compareGradients({ tensors, limits, dtype, findings }: Case, ours: StateDict): void {
  const wanted = Object.entries(tensors).filter(([name]) => name.startsWith('grad.'))
  const largest = Math.max(...wanted.map(([, value]) => norm(value)))
  for (const [name, value] of wanted) {
    const own = ours[name.slice('grad.'.length)]
    // A router whose only gate is 1 learns nothing: what transformers has there is rounding.
    const none = norm(value) < 1e-6 * largest
    const error = none ? norm(own) / largest : relativeError(values(own), values(value))
    findings.push({ name, error, limit: limits[dtype].gradient })
  }
}
