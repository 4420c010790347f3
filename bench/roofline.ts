import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { batchesOptions } from '../cli/index.js'
import { Batches, LanguageModel, loadCorpus, makeOptimizer, TrainStep } from '../language-model/index.js'
import { AdamW, clipGradNorm, MoE, manualSeed, randn, scope, setDefaultDevice } from '../lib/index.js'
import { mobyDick, usual, usualModel } from './demo.js'
import { main } from './main.js'
import { fill } from './page.js'
import { gpus, launchTable, type Pass, readWork, summary, type Work } from './roofline-model.js'

/**
 * Counts what each launch of the layer and of an optimizer step reads, writes and computes, on the emulator of
 * test/native/simt, and prints and writes the tables of docs/cuda.md and bench/roofline.md. No time is measured.
 */

const plugin = fileURLToPath(new URL('../build/roofline/libst_moe_simt.so', import.meta.url))

interface Shape {
  name: string
  dim: number
  experts: number
  sequences: number
  tokens: number
  computeDtype: 'f32' | 'bf16'
}

const seed = { dim: 512, experts: 16, sequences: 4, tokens: 1024 }
const large = { dim: 4096, experts: 64, sequences: 8, tokens: 2048 }
const shapes: readonly Shape[] = [
  { name: 'dim 512, 16 experts, 4 × 1024, f32', ...seed, computeDtype: 'f32' },
  { name: 'dim 512, 16 experts, 4 × 1024, bf16', ...seed, computeDtype: 'bf16' },
  { name: 'dim 4096, 64 experts, 8 × 2048, bf16', ...large, computeDtype: 'bf16' },
]

/** The result of `fn`, and what its launches did. */
function counted<T>(fn: () => T): { value: T; works: Work[] } {
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-roofline-'))
  const file = join(folder, 'launches')
  try {
    writeFileSync(file, '')
    process.env.SIMT_COUNTS = file
    const value = fn()
    process.env.SIMT_COUNTS = ''
    return { value, works: readWork(readFileSync(file, 'utf8')) }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** A training step of a layer that has made one before, so that its copies of weights and its state are there. */
function* layerPasses({ name, dim, experts, sequences, tokens, computeDtype }: Shape): Generator<Pass> {
  manualSeed(0)
  const moe = new MoE({ dim, numExperts: experts, computeDtype })
  const optimizer = new AdamW(moe.parameters())
  const x = randn([sequences, tokens, dim], { requiresGrad: true })
  const gradient = randn([sequences, tokens, dim])
  const pass = (what: string, { works }: { works: Work[] }): Pass => ({ shape: name, pass: what, works })
  try {
    scope(() => {
      moe.forward(x).outputs.backward(gradient)
      optimizer.step()
    })
    x.grad = null
    moe.zeroGrad()
    yield* scope(() => {
      const forward = counted(() => moe.forward(x))
      const backward = counted(() => forward.value.outputs.backward(gradient))
      return [pass('forward', forward), pass('backward', backward)]
    })
    const clip = () => clipGradNorm(moe.parameters(), 1, { wait: false }).dispose()
    yield pass('norm of the gradients, clipping', counted(clip))
    yield pass(
      'AdamW',
      counted(() => optimizer.step()),
    )
  } finally {
    optimizer.dispose()
    for (const tensor of [x, gradient]) tensor.dispose()
    moe.dispose()
  }
}

/** The demo's training step, which is captured: every launch of a replay, whole, since it is to train. */
async function demoPass(): Promise<Pass> {
  process.env.SIMT_ENOUGH = String(2 ** 40)
  manualSeed(0)
  const corpus = await loadCorpus(mobyDick, { name: 'Moby-Dick', context: usual.context })
  const model = new LanguageModel({ ...usualModel, tokenizer: corpus.tokenizer }).to('cuda')
  const optimizer = makeOptimizer(model, 1e-4)
  using step = new TrainStep(model, optimizer)
  const batches = new Batches(corpus.training, batchesOptions(usual))
  step.run(batches.at(0))
  try {
    return {
      shape: "the demo's model",
      pass: 'training step',
      works: counted(() => step.run(batches.at(1))).works,
    }
  } finally {
    optimizer.dispose()
    model.dispose()
  }
}

await main(import.meta.url, 'roofline', async () => {
  Object.assign(process.env, { ST_MOE_CUDA_LIBRARY: plugin, SIMT_STREAMS: 'eager', SIMT_MEMORY_MB: String(2 ** 22) })
  setDefaultDevice('cuda')
  const passes: Pass[] = []
  for (const shape of shapes) {
    for (const pass of layerPasses(shape)) {
      passes.push(pass)
      console.log(`${pass.shape}, ${pass.pass}: ${pass.works.length} launches and GEMMs`)
    }
  }
  passes.push(await demoPass())
  const sections = {
    'roofline-summary': summary(passes),
    'roofline-launches': passes
      .map((pass) => `### ${pass.pass}: ${pass.shape}\n\n${launchTable(pass, gpus[0])}`)
      .join('\n\n'),
  }
  for (const tables of Object.values(sections).reverse()) console.log(`\n${tables}`)
  if (!passes.some(({ works }) => works.some(({ isGemm, flops }) => !isGemm && flops > 0)))
    throw new Error(
      'the arithmetic of kernels was not counted, so the pages are as before: GCC has no headers for plugins (Debian: gcc-12-plugin-dev for GCC 12)',
    )
  for (const file of ['docs/cuda.md', 'bench/roofline.md']) {
    const url = new URL(`../${file}`, import.meta.url)
    writeFileSync(url, fill(readFileSync(url, 'utf8'), sections))
    console.log(fileURLToPath(url))
  }
})
