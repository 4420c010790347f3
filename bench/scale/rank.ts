import {
  initProcessGroup,
  MoE,
  manualSeed,
  ops,
  type ProcessGroup,
  randn,
  scope,
  setNumThreads,
  tensor,
} from '../../lib/index.js'
import { clock } from '../measured.js'
import { busySeconds, ownSeconds } from './load.js'
import type { Sample } from './measure.js'
import { exchangeBytes, fitted, predicted, type Shape, slots } from './shapes.js'

/** A rank with one thread. Its argument is the number of turns. Rank 0 prints the samples by name, as JSON. */
const turns = Number(process.argv[2])

/** Forward and backward of a layer whose experts and sequences the ranks share out, with the gradient of x. */
function layer(group: ProcessGroup, shape: Shape): () => void {
  const { dim, experts, sequences, tokens } = shape
  const moe = new MoE({ dim, numExperts: experts, ...(group.size > 1 && { processGroup: group }) })
  const x = randn([sequences / group.size, tokens, dim], { requiresGrad: true })
  const gradient = randn([sequences / group.size, tokens, dim])
  const kept = scope(() =>
    moe
      .forward(x)
      .routing.kept.dataSync()
      .reduce((sum, each) => sum + each, 0),
  )
  if (kept * group.size !== slots(shape)) throw new Error(`${shape.name}: ${kept * group.size} slots are used`)
  return () =>
    scope(() => {
      moe.zeroGrad()
      x.grad = null
      moe.forward(x).outputs.backward(gradient)
    })
}

/** Calls of an exchange in a sample. */
const callsOf = (bytes: number): number => Math.max(5, Math.min(400, Math.round(2 ** 26 / bytes)))

function exchanges(group: ProcessGroup, bytes: number): Record<string, () => void> {
  const x = randn([bytes / 4])
  const rows = bytes / 4 / group.size
  const splits = Array<number>(group.size).fill(rows)
  const repeated = (run: () => void) => () => {
    for (let i = 0; i < callsOf(bytes); i++) scope(run)
  }
  return {
    [`all-to-all ${bytes}`]: repeated(() => void ops.allToAll(x, group, { splits, outputSplits: splits })),
    [`all-reduce ${bytes}`]: repeated(() => void ops.allReduce(x, group)),
  }
}

const group = initProcessGroup()
setNumThreads(1)
manualSeed(0)

/** Over the ranks. */
const sumOf = (value: number): number => scope(() => ops.allReduce(tensor([value]), group).item())

function sample(run: () => void, calls: number): Sample {
  group.barrier()
  const [busy, own] = [busySeconds(), ownSeconds()]
  const time = clock(() => {
    run()
    group.barrier()
  })
  const used = ownSeconds() - own
  const all = busySeconds() - busy
  return { time: time / calls, others: Math.max(0, (all - sumOf(used)) / (time / 1e3)) }
}

const layers = [...fitted, predicted].map((shape) => ({ name: shape.name, run: layer(group, shape), calls: 1 }))
const exchanged = group.size === 1 ? [] : exchangeBytes
const cases = [
  ...layers,
  ...exchanged.flatMap((bytes) =>
    Object.entries(exchanges(group, bytes)).map(([name, run]) => ({ name, run, calls: callsOf(bytes) })),
  ),
]
const samples: Record<string, Sample[]> = Object.fromEntries(cases.map(({ name }) => [name, []]))
for (let turn = -1; turn < turns; turn++)
  for (const { name, run, calls } of turn % 2 === 0 ? cases : cases.toReversed()) {
    const found = sample(run, calls)
    if (turn >= 0) samples[name].push(found)
  }
if (group.rank === 0) console.log(JSON.stringify(samples))
group.destroy()
