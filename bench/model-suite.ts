import { batchesOptions, mean, modelSizes } from '../cli/index.js'
import { type Batch, Batches, LanguageModel, loadCorpus, makeOptimizer, TrainStep } from '../language-model/index.js'
import {
  type AdamW,
  crossEntropy,
  MoEMonitor,
  manualSeed,
  noGrad,
  type RoutingStats,
  saveSafetensorsSync,
  scope,
  setNumThreads,
  tensor,
} from '../lib/index.js'
import { mobyDick, usual } from './demo.js'
import { clock, inTurns, type Participant } from './measured.js'
import { Peer } from './peer.js'
import type { Bench, Found } from './report.js'

const rate = 1e-4

/** How long does a training step of the demo's language model take, vs. the same model of st-moe-pytorch? */
export async function modelSuite({ threads, repetitions, quick, peers }: Bench): Promise<Found> {
  const count = Math.max(...threads)
  const sizes = quick ? { ...usual, layers: 1, dim: 24, context: 16, batch: 2, experts: 4 } : usual
  const corpus = await loadCorpus(mobyDick, { name: 'Moby-Dick', context: sizes.context })
  const batch = new Batches(corpus.training, batchesOptions(sizes)).at(0)
  manualSeed(0)
  setNumThreads(count)
  const model = new LanguageModel({ ...modelSizes(sizes), tokenizer: corpus.tokenizer })
  const optimizer = makeOptimizer(model, rate)
  using trainStep = new TrainStep(model, optimizer)
  const peer = peers ? new Peer() : null
  const params = { threads: count, compute: 'f32' }
  try {
    const made = peer && (await peerStep(peer, model, batch, count))
    const stats = statsOf(model, optimizer, batch)
    const flops = flopsOf(model, batch.input.length, stats)
    const theirs = made && { ...made, flops }
    const ours: Participant = {
      name: 'st-moe/model/step',
      params,
      time: () => clock(() => void trainStep.run(batch)),
      flops,
      ...sharesOf(stats, batch.input.length * sizes['top-n']),
      against: theirs ? [{ other: theirs, measure: 'speed' }] : [],
    }
    return { results: await inTurns(theirs ? [ours, theirs] : [ours], repetitions * 3) }
  } finally {
    peer?.end()
    model.dispose()
  }
}

function statsOf(model: LanguageModel, optimizer: AdamW, batch: Batch): RoutingStats[] {
  using monitor = new MoEMonitor(model)
  using watched = new TrainStep(model, optimizer)
  watched.run(batch)
  return monitor.report()
}

const keptIn = ({ keptPerExpert }: RoutingStats): number => keptPerExpert.reduce((a, b) => a + b)

function sharesOf(stats: readonly RoutingStats[], assignments: number): { kept: number; occupancy: number } {
  return {
    kept: mean(stats.map((layer) => keptIn(layer) / assignments)),
    occupancy: mean(stats.map(({ slotOccupancy }) => slotOccupancy)),
  }
}

/** Of a step's GEMMs; a backward has twice as many as a forward. Attention counts what is before a token. */
function flopsOf({ sizes, tokenizer }: LanguageModel, tokens: number, stats: readonly RoutingStats[]): number {
  const { dim, context } = sizes
  const hidden = Math.trunc((dim * 8) / 3)
  const attention = tokens * (8 * dim ** 2 + 2 * context * dim)
  const layers = stats.map((layer) => attention + 6 * dim * hidden * (keptIn(layer) + tokens))
  return 3 * layers.reduce((a, b) => a + b, 2 * tokens * dim * tokenizer.size)
}

/** The model in PyTorch with the weights of ours. Throws where its loss is another. */
async function peerStep(
  peer: Peer,
  model: LanguageModel,
  { input, target }: Batch,
  threads: number,
): Promise<Participant> {
  const { context, dim, layers, heads, experts } = model.sizes
  const state = peer.file('model')
  scope(() => saveSafetensorsSync(state, model.stateDict()))
  await peer.threads(threads)
  await peer.ask({
    do: 'training',
    name: 'model',
    options: { vocabulary: model.tokenizer.size, context, dim, layers, heads, experts },
    state,
  })
  await peer.ask({ do: 'input', name: 'model', input: [...input], target: [...target], context })
  const theirs = await peer.ask<number>({ do: 'evaluate', name: 'model' })
  const ours = lossOf(model, { input, target })
  const error = Math.abs(theirs - ours) / ours
  if (!(error < 1e-4)) throw new Error(`the model of PyTorch has a loss of ${theirs}, ours ${ours}`)
  return {
    name: 'st-moe-pytorch/model/step',
    params: { threads, compute: 'f32' },
    time: () => peer.time('model', 'step'),
    error,
  }
}

/** Without chance and without drops. */
function lossOf(model: LanguageModel, { input, target }: Batch): number {
  model.eval()
  const shape = [input.length / model.context, model.context]
  const loss = scope(() =>
    noGrad(() => crossEntropy(model.forward(tensor(input, shape)).logits, tensor(target, shape)).item()),
  )
  model.train()
  return loss
}
