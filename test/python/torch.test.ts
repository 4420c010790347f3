import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { Attention, getDefaultDevice, loadSafetensorsSync, ops, scope, type Tensor, tensor } from '../../lib/index.js'
import { relativeError, runSeed, values } from '../support/numbers.js'
import { pythonFor, pythonPatience, referencePython, runScript } from '../support/python.js'

// Losses, attention and printed tensors against PyTorch and transformers: ST_MOE_SEED=<n> samples others.

const seed = runSeed()
const folder = mkdtempSync(join(tmpdir(), 'st-moe-torch-'))
let found: ReturnType<typeof referencePython>

vi.setConfig({ testTimeout: pythonPatience, hookTimeout: pythonPatience })

beforeAll(() => {
  found = referencePython()
  if ('python' in found) runScript(found.python, 'torch_ops.py', String(seed), folder)
})
afterAll(() => rmSync(folder, { recursive: true }))

type Tensors = Record<string, Tensor>

/** The result, and the leaves whose gradients count. */
function run(op: string, options: object, given: Tensors): { y: Tensor; leaves: Tensors } {
  if (op === 'attention') {
    const { q, k, v } = given
    return { y: ops.attention(q, k, v, options as { heads: number }), leaves: given }
  }
  if (op !== 'Attention') {
    const loss = ops[op as 'binaryCrossEntropyWithLogits']
    const { a, b, posWeight } = given
    return { y: loss(a, b, { ...options, ...(posWeight ? { posWeight } : {}) }), leaves: given }
  }
  const { x, mask, ...weights } = given
  const layer = new Attention(x.shape[2], { ...options, dtype: x.dtype as 'f64' })
  layer.loadStateDict(Object.fromEntries(Object.entries(weights).map(([name, value]) => [`${name}.weight`, value])))
  const leaves = {
    x,
    query: layer.query.weight,
    key: layer.key.weight,
    value: layer.value.weight,
    out: layer.out.weight,
  }
  return { y: layer.forward(x, { mask }), leaves }
}

test(`losses and attention, values and gradients (seed ${seed})`, (context) => {
  pythonFor(context, found)
  const files = readdirSync(folder).filter((name) => name.endsWith('.safetensors'))
  expect(files.length).toBe(51)
  for (const file of files)
    for (const dtype of ['f32', 'f64'] as const)
      scope(() => {
        const { tensors, metadata } = loadSafetensorsSync(join(folder, file))
        const { y: wanted, dy, ...rest } = tensors
        const gradients = Object.keys(rest).filter((name) => name[0] === 'd' && name.slice(1) in rest)
        const given: Tensors = {}
        for (const [name, value] of Object.entries(rest)) {
          if (gradients.includes(name)) continue
          given[name] = value.dtype === 'i32' ? value : value.to(dtype).detach()
          given[name].requiresGrad = value.dtype !== 'i32'
        }
        const { y, leaves } = run(metadata.op, JSON.parse(metadata.options), given)
        y.mul(dy.to(dtype)).sum().backward()
        const limit = dtype === 'f64' ? 1e-12 : 1e-6
        const what = `${file} ${metadata.op} ${metadata.options} ${dtype}`
        expect(relativeError(values(y), values(wanted)), what).toBeLessThan(limit)
        for (const name of gradients)
          expect(
            relativeError(values(leaves[name.slice(1)].grad!), values(rest[name])),
            `${what} ${name}`,
          ).toBeLessThan(limit)
      })
})

test(`gradients of attention in f32 have at most the error of PyTorch's (seed ${seed})`, (context) => {
  pythonFor(context, found)
  const errors = join(folder, 'errors')
  const ratios = readdirSync(errors).flatMap((file) =>
    scope(() => {
      const { tensors, metadata } = loadSafetensorsSync(join(errors, file))
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
})

test('tensors are printed as PyTorch prints them', (context) => {
  pythonFor(context, found)
  const printed: [string, number[], string[], string][] = JSON.parse(readFileSync(join(folder, 'printed.json'), 'utf8'))
  expect(printed.length).toBe(30)
  const dtypes = { 'torch.float32': 'f32', 'torch.float64': 'f64', 'torch.int32': 'i32' } as const
  for (const [dtype, shape, numbers, text] of printed)
    scope(() => {
      const data = Float64Array.from(numbers, (x) => Number(x.replace('inf', 'Infinity')))
      const x = tensor(data, shape, { dtype: dtypes[dtype as 'torch.int32'] })
      const shown = x.toString()
      expect(shown.slice(0, shown.lastIndexOf(',', shown.lastIndexOf('['))), shown).toBe(`tensor(${text}`)
    })
})
