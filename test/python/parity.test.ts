import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import {
  loadSafetensorsSync,
  loadTransformersMoE,
  type Module,
  MoE,
  manualSeed,
  rand,
  randn,
  SoftMoE,
  SparseMoEBlock,
  type StateDict,
  saveSafetensorsSync,
  saveTransformersMoE,
  scope,
  type Tensor,
} from '../../lib/index.js'
import { checkCase } from '../support/golden-case.js'
import { relativeError, runSeed, values } from '../support/numbers.js'
import { pythonFor, pythonPatience, referencePython, runParity, runScript } from '../support/python.js'
import { expectGradients } from '../support/transformers-gradients.js'

// Against the reference package itself, on random configurations: ST_MOE_SEED=<n> samples others.

const seed = runSeed()
const cases = 60
const folder = mkdtempSync(join(tmpdir(), 'st-moe-parity-'))
let found: ReturnType<typeof referencePython>

vi.setConfig({ testTimeout: pythonPatience, hookTimeout: pythonPatience })

beforeAll(() => {
  found = referencePython()
  if ('reason' in found) console.warn(`the reference package is missing: ${found.reason}`)
})

afterAll(() => rmSync(folder, { recursive: true }))

const packages = [
  { command: 'draw', name: 'st-moe-pytorch' },
  { command: 'soft', name: 'soft-moe-pytorch' },
]

test.for(packages)(`${cases} random configurations of $name (seed ${seed})`, ({ command }, context) => {
  const python = pythonFor(context, found)
  const drawn = join(folder, command)
  mkdirSync(drawn)
  runParity(python, command, String(seed), String(cases), drawn)
  const files = readdirSync(drawn).filter((name) => name.endsWith('.safetensors'))
  expect(files.length).toBe(cases)
  for (const file of files) {
    for (const dtype of ['f32', 'f64'] as const) {
      const findings = checkCase(join(drawn, file), dtype)
      const { kind, mode, config, forward_options } = loadSafetensorsSync(join(drawn, file)).metadata
      const bad = findings.filter(({ error, limit }) => !(error <= limit))
      expect(bad, `${file} ${dtype} ${kind} ${mode} ${config} ${forward_options}`).toEqual([])
    }
  }
})

test(`layers of transformers, read and written back (seed ${seed})`, (context) => {
  const python = pythonFor(context, found)
  for (const drawn of [seed, seed + 1]) {
    const models = join(folder, `transformers-${drawn}`)
    mkdirSync(models)
    runScript(python, 'open_models.py', 'make', String(drawn % 2 ** 31), models)
    const files = readdirSync(models).filter((name) => name.endsWith('.safetensors'))
    expect(files.length).toBe(8)
    const modelOf = (file: string) => join(models, file.replace('.safetensors', ''))
    for (const file of files)
      scope(() => {
        const moe = loadTransformersMoE(modelOf(file), { layer: 1 })
        const { tensors } = loadSafetensorsSync(join(models, file))
        const { x, y, dx } = tensors
        x.requiresGrad = true
        const { outputs } = moe.forward(x)
        outputs.square().sum().backward()
        expect(relativeError(values(outputs), values(y)), `${file} ${drawn}`).toBeLessThan(1e-5)
        expect(relativeError(values(x.grad!), values(dx)), `${file} ${drawn}, gradient`).toBeLessThan(1e-4)
        expectGradients(modelOf(file), moe, tensors, 1e-4)
        const other = loadTransformersMoE(modelOf(file), { layer: 1 })
        for (const parameter of other.parameters()) parameter.copyFrom(parameter.add(0.05).detach())
        saveTransformersMoE(modelOf(file), other, { layer: 1 })
      })
    runScript(python, 'open_models.py', 'run', models)
    for (const file of files)
      scope(() => {
        const { x, y } = loadSafetensorsSync(join(models, file)).tensors
        const { outputs } = loadTransformersMoE(modelOf(file), { layer: 1 }).forward(x)
        expect(relativeError(values(outputs), values(y)), `${file} ${drawn}, written back`).toBeLessThan(1e-5)
      })
  }
})

const forwardOfMoE = (layer: MoE | SparseMoEBlock, input: Tensor, uniforms: Tensor) =>
  layer.forward(input, { random: { uniforms } }).outputs

/** The same layer in our options and in the reference's, and its outputs for given random numbers. */
const layers = [
  {
    kind: 'moe',
    mode: 'train',
    build: () =>
      new MoE({ dtype: 'f64', dim: 12, numExperts: 5, gatingTopN: 3, thresholdTrain: [0.3, 0.6], thresholdEval: 0.1 }),
    config: { dim: 12, num_experts: 5, gating_top_n: 3, threshold_train: [0.3, 0.6], threshold_eval: 0.1 },
    random: [3, 2, 9],
    forwardOptions: {},
    forward: forwardOfMoE,
  },
  {
    kind: 'block',
    mode: 'eval',
    build: () =>
      new SparseMoEBlock(new MoE({ dtype: 'f64', dim: 10, numExperts: 4, expertHiddenMult: 4.1 }), {
        addFfBefore: true,
      }),
    config: { dim: 10, num_experts: 4, expert_hidden_mult: 4.1, add_ff_before: true, add_ff_after: true },
    random: [2, 2, 9],
    forwardOptions: {},
    forward: forwardOfMoE,
  },
  ...[true, false].map((geglu) => ({
    kind: 'soft_moe',
    mode: 'train',
    build: () => new SoftMoE({ dtype: 'f64', dim: 10, seqLen: 9, geglu, useLayerNorm: geglu }),
    config: { dim: 10, seq_len: 9, geglu, use_layernorm: geglu },
    random: [2, 9, 4, 2],
    forwardOptions: { add_noise: true },
    forward: (layer: SoftMoE, input: Tensor, gumbelUniforms: Tensor) =>
      layer.forward(input, { addNoise: true, random: { gumbelUniforms } }),
  })),
] as Exchanged[]

interface Exchanged {
  kind: string
  mode: string
  build(): Module
  config: { dim: number }
  random: number[]
  forwardOptions: object
  forward(layer: Module, input: Tensor, uniforms: Tensor): Tensor
}

/** A state in the package's dtype. */
const single = (state: StateDict): StateDict =>
  Object.fromEntries(Object.entries(state).map(([name, value]) => [name, value.to('f32')]))

test.for(layers)('files go both ways: $kind $config', ({ kind, mode, build, config, random, ...rest }, context) => {
  const python = pythonFor(context, found)
  const inFolder = (name: string) => join(folder, name)
  scope(() => {
    manualSeed(seed)
    using layer = build().train(mode === 'train')
    layer.loadStateDict(single(layer.stateDict())) // rounded to float32, as the file has it
    const input = randn([2, 9, config.dim])
    const uniforms = rand(random)
    saveSafetensorsSync(inFolder('ours.safetensors'), single(layer.stateDict()), {
      metadata: { kind, mode, config: JSON.stringify(config), forward_options: JSON.stringify(rest.forwardOptions) },
    })
    saveSafetensorsSync(inFolder('input.safetensors'), { input, uniforms })
    runParity(python, 'exchange', folder)

    const { outputs } = loadSafetensorsSync(inFolder('outputs.safetensors')).tensors
    const run = (own: Module) => values(rest.forward(own, input.to('f64'), uniforms.to('f64')))
    expect(relativeError(run(layer), values(outputs))).toBeLessThan(1e-12)

    using fresh = build().train(mode === 'train')
    fresh.loadStateDict(loadSafetensorsSync(inFolder('theirs.safetensors')).tensors)
    expect(relativeError(run(fresh), values(outputs))).toBeLessThan(1e-12)
  })
})
