import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
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
import { long, relativeError, runSeed, values } from '../support/numbers.js'
import { pythonFor, pythonPatience, referencePython } from '../support/python.js'
import { filesIn } from '../support/python-answers.js'
import { scriptRunner } from '../support/python-scripts.js'

// Our files in the hands of Python, and back; ST_MOE_SEED=<n> draws others.

const seed = runSeed()
const runScript = scriptRunner()
let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'st-moe-exchange-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

vi.setConfig({ testTimeout: pythonPatience })

test.for(long ? [seed, seed + 1] : [seed])(
  'models of transformers, read and written back (seed %i)',
  async (drawn, context) => {
    const python = pythonFor(context, referencePython())
    await runScript(python, 'open_models.py', 'make', String(drawn), folder)
    const files = filesIn(folder)
    expect(files.length).toBe(8)
    const modelOf = (file: string) => join(folder, file.replace('.safetensors', ''))
    const errorOf = (file: string) => {
      const { x, y } = loadSafetensorsSync(join(folder, file)).tensors
      const moe = loadTransformersMoE(modelOf(file), { layer: 1 })
      return { moe, error: relativeError(values(moe.forward(x).outputs), values(y)) }
    }
    for (const file of files)
      scope(() => {
        const { moe, error } = errorOf(file)
        expect(error, file).toBeLessThan(1e-5)
        for (const parameter of moe.parameters()) parameter.copyFrom(parameter.add(0.05).detach())
        saveTransformersMoE(modelOf(file), moe, { layer: 1 })
      })
    await runScript(python, 'open_models.py', 'again', folder)
    for (const file of files) scope(() => expect(errorOf(file).error, `${file}, written back`).toBeLessThan(1e-5))
  },
)

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

test.for(layers)('files go both ways: $kind $config', ({ kind, mode, build, config, random, ...rest }, context) =>
  scope(async () => {
    const python = pythonFor(context, referencePython())
    const inFolder = (name: string) => join(folder, name)

    manualSeed(seed)
    using layer = build().train(mode === 'train')
    layer.loadStateDict(single(layer.stateDict())) // rounded to float32, as the file has it
    const input = randn([2, 9, config.dim])
    const uniforms = rand(random)
    saveSafetensorsSync(inFolder('ours.safetensors'), single(layer.stateDict()), {
      metadata: { kind, mode, config: JSON.stringify(config), forward_options: JSON.stringify(rest.forwardOptions) },
    })
    saveSafetensorsSync(inFolder('input.safetensors'), { input, uniforms })
    await runScript(python, 'exchange.py', 'exchange', folder)

    const { outputs } = loadSafetensorsSync(inFolder('outputs.safetensors')).tensors
    const run = (own: Module) => values(rest.forward(own, input.to('f64'), uniforms.to('f64')))
    expect(relativeError(run(layer), values(outputs))).toBeLessThan(1e-12)

    using fresh = build().train(mode === 'train')
    fresh.loadStateDict(loadSafetensorsSync(inFolder('theirs.safetensors')).tensors)
    expect(relativeError(run(fresh), values(outputs))).toBeLessThan(1e-12)
  }),
)
