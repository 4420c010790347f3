import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { batchesOptions } from '../cli/index.js'
import { Batches, LanguageModel, loadCorpus, makeOptimizer, TrainStep } from '../language-model/index.js'
import { AdamW, clipGradNorm, MoE, manualSeed, noGrad, randn, scope, setDefaultDevice } from '../lib/index.js'
import { mobyDick, usual, usualModel } from './demo.js'
import { main } from './main.js'
import { fill } from './page.js'
import { estimateTable } from './roofline-estimates.js'
import { gpus, type Pass } from './roofline-model.js'
import { launchTable, lossTable, summary } from './roofline-tables.js'
import { isGemm, readWork, type Work } from './roofline-work.js'

/**
 * Counts what each launch of the layer and of an optimizer step reads, writes and computes, on the emulator of
 * test/native/simt, and prints and writes the tables of docs/cuda.md and bench/roofline.md. No time is measured.
 */

const plugin = fileURLToPath(new URL('../build/roofline/libst_moe_simt.so', import.meta.url))

interface Shape {
  name: string
  dim: number
  hidden?: number
  experts: number
  /** With every choice asked for. Default: the second expert by chance, as is the layer's default. */
  topK?: number
  /** Default: 1.25, in total, so that with top-8 most assignments would be dropped. */
  capacityFactor?: number
  sequences: number
  tokens: number
  computeDtype: 'f32' | 'bf16'
  dropless?: boolean
  /** Only a forward in evaluation, without gradients. */
  decoding?: boolean
  /** Also counts the norm of the gradients, clipping and AdamW. */
  step?: boolean
}

const seed = { dim: 512, experts: 16, sequences: 4, tokens: 1024 }
const large = { dim: 4096, hidden: 14336, experts: 8, sequences: 4, tokens: 2048, computeDtype: 'bf16' } as const
const many = { dim: 4096, experts: 64, sequences: 8, tokens: 2048, computeDtype: 'bf16' } as const
const fineSizes = { dim: 2048, hidden: 768, experts: 128, topK: 8, capacityFactor: 10 }
const fine = { ...fineSizes, sequences: 8, tokens: 2048, computeDtype: 'bf16' } as const
const shapes: readonly Shape[] = [
  { name: 'dim 512, 16 experts, 4 × 1024, f32', ...seed, computeDtype: 'f32', step: true },
  { name: 'dim 512, 16 experts, 4 × 1024, bf16', ...seed, computeDtype: 'bf16', step: true },
  { name: 'dim 512, 16 experts, 4 × 1024, bf16, dropless', ...seed, computeDtype: 'bf16', dropless: true },
  { name: '4096 × 14336, 8 experts, 4 × 2048, bf16', ...large },
  { name: '4096 × 14336, 8 experts, 4 × 2048, bf16, dropless', ...large, dropless: true },
  { name: 'dim 4096, 64 experts, 8 × 2048, bf16', ...many, step: true },
  { name: '2048 × 768, 128 experts, top-8, 8 × 2048, bf16', ...fine },
  { name: '2048 × 768, 128 experts, top-8, 8 × 2048, bf16, dropless', ...fine, dropless: true },
  ...[1, 8].flatMap((sequences): Shape[] => {
    const decoding = { sequences, tokens: 1, decoding: true, dropless: true }
    const tokens = sequences === 1 ? '1 token' : `${sequences} tokens`
    return [
      { name: `4096 × 14336, 8 experts, ${tokens}, bf16`, ...large, ...decoding },
      { name: `2048 × 768, 128 experts, top-8, ${tokens}, bf16`, ...fine, ...decoding },
    ]
  }),
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

const layerOf = ({ dim, hidden, experts, topK, capacityFactor, computeDtype, dropless }: Shape): MoE =>
  new MoE({
    ...{ dim, numExperts: experts, computeDtype, dropless },
    ...(capacityFactor === undefined || dropless ? {} : { capacityFactorTrain: capacityFactor }),
    ...(hidden === undefined ? {} : { expertHiddenDim: hidden }),
    ...(topK === undefined ? {} : { gatingTopN: topK, secondPolicyTrain: 'all', secondPolicyEval: 'all' }),
  })

const passOf = ({ name, experts }: Shape, what: string, { works }: { works: Work[] }): Pass => ({
  shape: name,
  pass: what,
  experts,
  works,
})

/** Accesses after which the emulator stops running blocks of a launch. */
const enough = { whole: 2 ** 26, rough: 2 ** 23 }

/**
 * `whole`: what a forward launches depends on the routing, so the kernels of the router must run in full. `rough`: the
 * numbers of a backward or a step of an optimizer are not needed, so GEMMs do not run, and few blocks of the kernels do.
 */
function emulated<T>(how: keyof typeof enough, fn: () => T): T {
  process.env.SIMT_ENOUGH = String(enough[how])
  if (how === 'rough') process.env.SIMT_ENOUGH_PRODUCTS = '0'
  try {
    return fn()
  } finally {
    Object.assign(process.env, { SIMT_ENOUGH: '', SIMT_ENOUGH_PRODUCTS: '' })
  }
}

/** A training step of a layer that has made one before, so that its copies of weights and its state are there. */
function* layerPasses(shape: Shape): Generator<Pass> {
  const { dim, sequences, tokens, step } = shape
  manualSeed(0)
  const moe = layerOf(shape)
  const optimizer = step ? new AdamW(moe.parameters()) : null
  const x = randn([sequences, tokens, dim], { requiresGrad: true })
  const gradient = randn([sequences, tokens, dim])
  try {
    const forward = () => emulated('whole', () => moe.forward(x))
    const roughly = (fn: () => void) => emulated('rough', fn)
    scope(() => {
      const { outputs } = forward()
      roughly(() => {
        outputs.backward(gradient)
        optimizer?.step()
      })
    })
    x.grad = null
    moe.zeroGrad()
    yield* scope(() => {
      const first = counted(forward)
      const second = counted(() => roughly(() => first.value.outputs.backward(gradient)))
      return [passOf(shape, 'forward', first), passOf(shape, 'backward', second)]
    })
    if (!optimizer) return
    const clip = () => clipGradNorm(moe.parameters(), 1, { wait: false }).dispose()
    yield passOf(
      shape,
      'norm of the gradients, clipping',
      counted(() => roughly(clip)),
    )
    yield passOf(
      shape,
      'AdamW',
      counted(() => roughly(() => optimizer.step())),
    )
  } finally {
    optimizer?.dispose()
    for (const tensor of [x, gradient]) tensor.dispose()
    moe.dispose()
  }
}

/** A forward in evaluation, after one that has made the copies of weights. */
function* decodingPass(shape: Shape): Generator<Pass> {
  manualSeed(0)
  const moe = layerOf(shape).eval()
  const x = randn([shape.sequences, shape.tokens, shape.dim])
  try {
    const forward = () => noGrad(() => moe.forward(x))
    scope(forward)
    yield scope(() => passOf(shape, 'decoding', counted(forward)))
  } finally {
    x.dispose()
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
    for (const pass of shape.decoding ? decodingPass(shape) : layerPasses(shape)) {
      passes.push(pass)
      console.log(`${pass.shape}, ${pass.pass}: ${pass.works.length} launches and GEMMs`)
    }
  }
  passes.push(await demoPass())
  const sections = {
    'roofline-summary': summary(passes),
    'roofline-losses': lossTable(passes, gpus[0]),
    'roofline-estimates': estimateTable(passes, gpus[0]),
    'roofline-launches': passes
      .map((pass) => `### ${pass.pass}: ${pass.shape}\n\n${launchTable(pass, gpus[0])}`)
      .join('\n\n'),
  }
  for (const tables of Object.values(sections).reverse()) console.log(`\n${tables}`)
  if (!passes.some(({ works }) => works.some((work) => !isGemm(work) && work.flops > 0)))
    throw new Error(
      'the arithmetic of kernels was not counted, so the pages are as before: GCC has no headers for plugins (Debian: gcc-12-plugin-dev for GCC 12)',
    )
  for (const file of ['docs/cuda.md', 'bench/roofline.md']) {
    const url = new URL(`../${file}`, import.meta.url)
    writeFileSync(url, fill(readFileSync(url, 'utf8'), sections))
    console.log(fileURLToPath(url))
  }
})
