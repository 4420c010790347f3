import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as pause } from 'node:timers/promises'
import { batchesOptions, modelSizes } from '../cli/index.js'
import { Batches, LanguageModel, loadCorpus, makeOptimizer } from '../language-model/index.js'
import {
  clipGradNorm,
  crossEntropy,
  manualSeed,
  noGrad,
  scope,
  setNumThreads,
  tensor,
  trainStepAsync,
} from '../lib/index.js'
import { mobyDick, usual } from './demo.js'
import { evaluated } from './measured.js'
import type { Bench, Found } from './report.js'

/** Milliseconds between requests. */
const interval = 20

/** One way to train and to answer, and its samples, one of each turn. */
interface Way {
  name: string
  /** Takes one step, and gives the event loop a turn. */
  train: () => Promise<void>
  answer: () => Promise<void>
  delays: number[]
  steps: number[]
}

/**
 * How long does the event loop wait (99th percentile) while the demo's model trains and another one answers requests in the
 * same process: synchronously, and asynchronously?
 */
export async function serverSuite({ threads, repetitions, quick }: Bench): Promise<Found> {
  const count = Math.max(...threads)
  const sizes = quick ? { ...usual, layers: 1, dim: 24, context: 16, batch: 2, experts: 4 } : usual
  const corpus = await loadCorpus(mobyDick, { name: 'Moby-Dick', context: sizes.context })
  const options = { ...modelSizes(sizes), tokenizer: corpus.tokenizer }
  const batch = new Batches(corpus.training, batchesOptions(sizes)).at(0)
  manualSeed(0)
  setNumThreads(count)
  using model = new LanguageModel(options)
  using served = new LanguageModel(options).eval()
  using optimizer = makeOptimizer(model, 1e-4)
  using input = tensor(batch.input, [sizes.batch, sizes.context])
  using target = tensor(batch.target, [sizes.batch, sizes.context])
  using request = tensor(new Int32Array(sizes.context), [1, sizes.context])
  const step = () => {
    const { logits, routed } = model.forward(input)
    const loss = crossEntropy(logits, target)
    routed.reduce((sum, { totalAuxLoss }) => sum.add(totalAuxLoss), loss).backward()
    clipGradNorm(model.parameters(), 1, { wait: false })
    optimizer.step()
    optimizer.zeroGrad()
    return loss
  }
  const ways: Way[] = [
    {
      name: 'synchronous',
      train: async () => {
        scope(step).dispose()
        await pause(0)
      },
      answer: async () => void scope(() => noGrad(() => served.forward(request)).logits.dataSync()),
      delays: [],
      steps: [],
    },
    {
      name: 'asynchronous',
      train: async () => (await trainStepAsync(step)).dispose(),
      answer: () => scope(async () => void (await noGrad(() => served.forwardAsync(request))).logits.dataAsync()),
      delays: [],
      steps: [],
    },
  ]
  for (let turn = -1; turn < repetitions; turn++)
    for (const way of turn % 2 === 0 ? ways : ways.toReversed()) {
      const { delay, ms } = await measured(way, quick ? 100 : 3000)
      if (turn < 0) continue
      way.delays.push(delay)
      way.steps.push(ms)
    }
  const cases = (name: string, samples: (way: Way) => number[]) =>
    evaluated(
      ways.map((way, i) => ({
        name: `st-moe/server/${name}`,
        params: { threads: count, training: way.name },
        iterations: 1,
        wall: samples(way),
        against: i === 0 ? [] : [{ index: 0, measure: 'time' as const }],
      })),
    )
  return { results: [...cases('delay', ({ delays }) => delays), ...cases('step', ({ steps }) => steps)] }
}

/** Trains for `duration` ms while requests are answered. */
async function measured({ train, answer }: Way, duration: number): Promise<{ delay: number; ms: number }> {
  const histogram = monitorEventLoopDelay({ resolution: 1 })
  let running = true
  const serve = async () => {
    for (; running; await pause(interval)) await answer()
  }
  const served = serve()
  await pause(0)
  histogram.enable()
  const start = performance.now()
  let steps = 0
  while (performance.now() - start < duration) {
    await train()
    steps++
  }
  const ms = (performance.now() - start) / steps
  histogram.disable()
  running = false
  await served
  return { delay: histogram.percentile(99) / 1e6, ms }
}
