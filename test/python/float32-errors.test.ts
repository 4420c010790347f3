import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { expect, test } from 'vitest'
import { loadSafetensorsSync, ops, scope, type Tensor } from '../../lib/index.js'
import { relativeError, runSeed, values } from '../support/numbers.js'
import { pythonFor, pythonPatience, referencePython } from '../support/python.js'
import { scriptRunner } from '../support/python-scripts.js'

// How exact the ops are in f32, beside PyTorch: the errors of both against its float64.

const seed = runSeed()
const runScript = scriptRunner()
const timeout = pythonPatience

interface Sample {
  options: { axis?: number | number[]; keepDim?: boolean } & Record<string, unknown>
  inputs: number
  y: number
  gradients: number[]
}

/** The op of a sample; those that take something else than tensors and an object of options. */
function computed(op: string, inputs: Tensor[], { axis, keepDim, ...options }: Sample['options']): Tensor {
  const [x] = inputs
  if (op === 'sum' || op === 'mean') return ops[op](x, axis, keepDim)
  if (op === 'softmax' || op === 'logSoftmax') return ops[op](x, axis as number)
  const any = ops as unknown as Record<string, (...args: unknown[]) => Tensor>
  return any[op](...inputs, ...(Object.keys(options).length > 0 ? [options] : []))
}

/** How many times the error of PyTorch ours is, of the result and of each gradient; errors below 1e-7 count as 1e-7. */
function ratiosOf(file: string): { y: number[]; gradients: number[] } {
  const op = basename(file, '.safetensors')
  const ratios = { y: [] as number[], gradients: [] as number[] }
  scope(() => {
    const { tensors, metadata } = loadSafetensorsSync(file)
    const ratio = (own: Tensor, wanted: Tensor, theirs: number) =>
      Math.max(relativeError(values(own), values(wanted)), 1e-7) / Math.max(theirs, 1e-7)
    for (const [i, { options, inputs: count, y, gradients }] of (JSON.parse(metadata.samples) as Sample[]).entries()) {
      const inputs = Array.from({ length: count }, (_, j) => tensors[`${i}.x${j}`])
      const leaves = inputs.filter(({ dtype }) => dtype !== 'i32')
      for (const leaf of leaves) leaf.requiresGrad = true
      const found = computed(op, inputs, options)
      ratios.y.push(ratio(found, tensors[`${i}.y`], y))
      found.mul(tensors[`${i}.dy`]).sum().backward()
      for (const [j, { grad }] of leaves.entries())
        ratios.gradients.push(ratio(grad!, tensors[`${i}.d${j}`], gradients[j]))
    }
  })
  return ratios
}

const geometricMean = (list: number[]): number =>
  Math.exp(list.reduce((sum, value) => sum + Math.log(value), 0) / list.length)

test(`every op has at most 1.2 times the error of PyTorch's in f32 (seed ${seed})`, { timeout }, async (context) => {
  const python = pythonFor(context, referencePython())
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-errors-'))
  try {
    await runScript(python, 'float32_errors.py', 'draw', String(seed), folder)
    const found = readdirSync(folder).map((file) => {
      const { y, gradients } = ratiosOf(join(folder, file))
      return {
        op: basename(file, '.safetensors'),
        samples: y.length,
        y: geometricMean(y),
        gradients: geometricMean(gradients),
      }
    })
    console.log(
      found
        .map(({ op, samples, y, gradients }) => `${op} ${samples}: ${y.toFixed(2)}, ${gradients.toFixed(2)}`)
        .join('\n'),
    )
    expect(found.length).toBe(35)
    expect(found.filter(({ samples }) => samples < 2)).toEqual([])
    expect(found.filter(({ y, gradients }) => !(Math.max(y, gradients) <= 1.2))).toEqual([])
  } finally {
    rmSync(folder, { recursive: true })
  }
})
