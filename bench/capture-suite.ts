import {
  AdamW,
  captureStep,
  MoE,
  manualSeed,
  mseLoss,
  randn,
  SparseMoEBlock,
  scope,
  setNumThreads,
} from '../lib/index.js'
import { clock, inTurns, type Participant } from './measured.js'
import type { Bench, Found, Result } from './report.js'

/** Width of the model and tokens of a step. */
const sizes: readonly (readonly [dim: number, tokens: number])[] = [
  [16, 32],
  [64, 256],
  [128, 1024],
]

/** How long does a replay of a captured training step take, vs. a call of its function? One block, 4 experts, AdamW. */
export async function captureSuite({ threads, repetitions, quick }: Bench): Promise<Found> {
  const count = Math.max(...threads)
  setNumThreads(count)
  const results: Result[] = []
  for (const [dim, tokens] of quick ? sizes.slice(0, 1) : sizes)
    results.push(...(await both(dim, tokens, count, repetitions)))
  return { results }
}

async function both(dim: number, tokens: number, threads: number, repetitions: number): Promise<Result[]> {
  manualSeed(0)
  using block = new SparseMoEBlock(new MoE({ dim, numExperts: 4 }))
  using optimizer = new AdamW(block.parameters(), { lr: 1e-3 })
  using x = randn([1, tokens, dim])
  const step = () => {
    optimizer.zeroGrad()
    const { outputs, totalAuxLoss } = block.forward(x)
    const loss = mseLoss(outputs, x).add(totalAuxLoss)
    loss.backward()
    optimizer.step()
    return loss
  }
  using captured = captureStep(step)
  const params = { dim, tokens, threads, compute: 'f32' }
  const called: Participant = {
    name: 'st-moe/capture/call',
    params,
    time: () => clock(() => scope(() => void step().item())),
  }
  const replayed: Participant = {
    name: 'st-moe/capture/replay',
    params,
    time: () => clock(() => void captured.replay().item()),
    against: [{ other: called, measure: 'speed' }],
  }
  return await inTurns([replayed, called], repetitions * 15)
}
