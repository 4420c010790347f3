import { batchesOptions, modelSizes } from '../cli/index.js'
import { Batches, LanguageModel, loadCorpus, makeOptimizer } from '../language-model/index.js'
import {
  captureStep,
  crossEntropy,
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
  zeros,
} from '../lib/index.js'
import { mobyDick, usual } from './demo.js'
import { clock } from './measured.js'

/**
 * A rank of the suite `processes`: what, threads of a rank, turns and whether it is small are its arguments. Rank 0 prints the
 * milliseconds of each turn by name.
 */
const [what, threads, turns, size] = process.argv.slice(2)
const isQuick = size === 'quick'

/** The layer of the README, whose experts and sequences the ranks share out. */
function layer(group: ProcessGroup): Record<string, number[]> {
  const [dim, batch, tokens] = isQuick ? [32, 4, 64] : [512, 4, 1024]
  const moe = new MoE({ dim, numExperts: 16, ...(group.size > 1 && { processGroup: group }) })
  const x = randn([batch / group.size, tokens, dim], { requiresGrad: true })
  const step = () =>
    scope(() => {
      moe.zeroGrad()
      x.grad = null
      const { outputs, totalAuxLoss } = moe.forward(x)
      outputs.square().mean().add(totalAuxLoss).backward()
      group.barrier()
    })
  step()
  return { layer: Array.from({ length: Number(turns) }, () => clock(step)) }
}

/** A step of the demo with and without the exchange of gradients, and the exchange alone, in turns. */
async function demo(group: ProcessGroup): Promise<Record<string, number[]>> {
  const sizes = isQuick ? { ...usual, layers: 1, dim: 24, context: 16, batch: 4, experts: 4 } : usual
  const corpus = await loadCorpus(mobyDick, { name: 'Moby-Dick', context: sizes.context })
  const { input, target } = new Batches(corpus.training, batchesOptions(sizes)).at(0)
  const shape = [sizes.batch / group.size, sizes.context]
  const own = (tokens: Int32Array) => {
    const half = zeros(shape, { dtype: 'i32' })
    half.copyFrom(tokens.subarray(group.rank * half.size, (group.rank + 1) * half.size))
    return half
  }
  const [x, y] = [own(input), own(target)]
  const made = (parallel: boolean) => {
    manualSeed(0)
    const model = new LanguageModel({ ...modelSizes(sizes), tokenizer: corpus.tokenizer })
    const optimizer = makeOptimizer(model, 1e-4)
    const together: DataParallel | null = parallel ? dataParallel(model, group) : null
    const step = captureStep(() => {
      const { logits, routed } = model.forward(x)
      const loss = crossEntropy(logits, y)
      routed.reduce((sum, { totalAuxLoss }) => sum.add(totalAuxLoss), loss).backward()
      optimizer.step()
      optimizer.zeroGrad()
      return loss
    })
    return { model, together, run: () => void step.replay().item() }
  }
  const [alone, parallel] = [made(false), made(true)]
  const count = alone.model.parameters().reduce((sum, { size }) => sum + size, 0)
  const gradients = randn([count])
  const ways = {
    compute: alone.run,
    'all-reduce': () => scope(() => void ops.allReduce(gradients, group).dataSync()),
    step: parallel.run,
  }
  const samples: Record<string, number[]> = {}
  for (let turn = 0; turn <= Number(turns); turn++)
    for (const [name, run] of Object.entries(ways)) {
      group.barrier()
      const time = clock(() => {
        run()
        group.barrier()
      })
      if (turn > 0) samples[name] = [...(samples[name] ?? []), time]
    }
  return samples
}

const group = initProcessGroup()
setNumThreads(Number(threads))
manualSeed(0)
const samples = what === 'layer' ? layer(group) : await demo(group)
if (group.rank === 0) console.log(JSON.stringify(samples))
group.destroy()
