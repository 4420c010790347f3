import { batchesOptions, modelSizes } from '../cli/index.js'
import { Batches, LanguageModel, loadCorpus, makeOptimizer, TrainStep } from '../language-model/index.js'
import {
  type DataParallel,
  dataParallel,
  initProcessGroup,
  MoE,
  manualSeed,
  ops,
  type ProcessGroup,
  randn,
  scope,
  setNumThreads,
} from '../lib/index.js'
import { mobyDick, usual } from './demo.js'
import { clock, inTurns } from './measured.js'

/**
 * A rank of the suite `processes`: what, threads of a rank, turns and whether it is small are its arguments. Rank 0 prints the
 * milliseconds of each turn by name.
 */
const [what, threads, turns, size] = process.argv.slice(2)
const isQuick = size === 'quick'

type Ways = Record<string, () => void>

/** The layer of the README, whose experts and sequences the ranks share out. */
function layer(group: ProcessGroup): Ways {
  const [dim, batch, tokens] = isQuick ? [32, 4, 64] : [512, 4, 1024]
  const moe = new MoE({ dim, numExperts: 16, ...(group.size > 1 && { processGroup: group }) })
  const x = randn([batch / group.size, tokens, dim], { requiresGrad: true })
  const step = () =>
    scope(() => {
      moe.zeroGrad()
      x.grad = null
      const { outputs, totalAuxLoss } = moe.forward(x)
      outputs.square().mean().add(totalAuxLoss).backward()
    })
  return { layer: step }
}

/** A step of the demo together, one on this rank's part of the batch alone, and the exchange of the gradients. */
async function demo(group: ProcessGroup): Promise<Ways> {
  const sizes = isQuick ? { ...usual, layers: 1, dim: 24, context: 16, batch: 4, experts: 4 } : usual
  const corpus = await loadCorpus(mobyDick, { name: 'Moby-Dick', context: sizes.context })
  const batch = new Batches(corpus.training, batchesOptions(sizes)).at(0)
  const tokens = batch.input.length / group.size
  const own = (of: Int32Array) => of.subarray(group.rank * tokens, (group.rank + 1) * tokens)
  const part = { input: own(batch.input), target: own(batch.target) }
  const made = (join: (model: LanguageModel) => DataParallel | null) => {
    manualSeed(0)
    const model = new LanguageModel({ ...modelSizes(sizes), tokenizer: corpus.tokenizer })
    return { model, step: new TrainStep(model, makeOptimizer(model, 1e-4), join(model)) }
  }
  const { model, step: alone } = made(() => null)
  const { step: together } = made((model) => dataParallel(model, group))
  const gradients = randn([model.parameters().reduce((sum, { size }) => sum + size, 0)])
  return {
    compute: () => void alone.run(part),
    exchange: () => scope(() => void ops.allReduce(gradients, group).dataSync()),
    step: () => void together.run(batch),
  }
}

const group = initProcessGroup()
setNumThreads(Number(threads))
manualSeed(0)
const ways = what === 'layer' ? layer(group) : await demo(group)
const participants = Object.entries(ways).map(([name, run]) => {
  const time = () => {
    group.barrier()
    return clock(() => {
      run()
      group.barrier()
    })
  }
  return { name, params: {}, time }
})
const results = await inTurns(participants, Number(turns))
if (group.rank === 0)
  console.log(JSON.stringify(Object.fromEntries(results.map(({ name, samples }) => [name, samples]))))
group.destroy()
