import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import {
  loadSafetensorsSync,
  MoE,
  manualSeed,
  rand,
  randn,
  SparseMoEBlock,
  type StateDict,
  saveSafetensorsSync,
  scope,
} from '../lib/index.js'
import { checkCase } from './support/golden-case.js'
import { relativeError, runSeed, values } from './support/numbers.js'
import { pythonFor, pythonPatience, referencePython, runParity } from './support/python.js'

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

test(`${cases} random configurations (seed ${seed})`, (context) => {
  const python = pythonFor(context, found)
  runParity(python, 'draw', String(seed), String(cases), folder)
  const files = readdirSync(folder).filter((name) => name.endsWith('.safetensors'))
  expect(files.length).toBe(cases)
  for (const file of files) {
    for (const dtype of ['f32', 'f64'] as const) {
      const findings = checkCase(join(folder, file), dtype)
      const { kind, mode, config, forward_options } = loadSafetensorsSync(join(folder, file)).metadata
      const bad = findings.filter(({ error, limit }) => !(error <= limit))
      expect(bad, `${file} ${dtype} ${kind} ${mode} ${config} ${forward_options}`).toEqual([])
    }
  }
})

/** The same layer in our options and in the reference's. */
const layers = [
  {
    kind: 'moe',
    mode: 'train',
    build: () =>
      new MoE({ dtype: 'f64', dim: 12, numExperts: 5, gatingTopN: 3, thresholdTrain: [0.3, 0.6], thresholdEval: 0.1 }),
    config: { dim: 12, num_experts: 5, gating_top_n: 3, threshold_train: [0.3, 0.6], threshold_eval: 0.1 },
    random: [3, 2, 9],
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
  },
]

/** A state in the package's dtype. */
const single = (state: StateDict): StateDict =>
  Object.fromEntries(Object.entries(state).map(([name, value]) => [name, value.to('f32')]))

test.for(layers)('files go both ways: $kind', ({ kind, mode, build, config, random }, context) => {
  const python = pythonFor(context, found)
  const inFolder = (name: string) => join(folder, name)
  scope(() => {
    manualSeed(seed)
    using layer = build().train(mode === 'train')
    layer.loadStateDict(single(layer.stateDict())) // rounded to float32, as the file has it
    const input = randn([2, 9, layer instanceof MoE ? layer.dim : layer.moe.dim])
    const uniforms = rand(random)
    saveSafetensorsSync(inFolder('ours.safetensors'), single(layer.stateDict()), {
      metadata: { kind, mode, config: JSON.stringify(config) },
    })
    saveSafetensorsSync(inFolder('input.safetensors'), { input, uniforms })
    runParity(python, 'exchange', folder)

    const { outputs } = loadSafetensorsSync(inFolder('outputs.safetensors')).tensors
    const run = (own: MoE | SparseMoEBlock) =>
      values(own.forward(input.to('f64'), { random: { uniforms: uniforms.to('f64') } }).outputs)
    expect(relativeError(run(layer), values(outputs))).toBeLessThan(1e-12)

    using fresh = build().train(mode === 'train')
    fresh.loadStateDict(loadSafetensorsSync(inFolder('theirs.safetensors')).tensors)
    expect(relativeError(run(fresh), values(outputs))).toBeLessThan(1e-12)
  })
})
