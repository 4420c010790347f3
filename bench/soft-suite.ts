import {
  loadSafetensorsSync,
  manualSeed,
  noGrad,
  randn,
  SoftMoE,
  saveSafetensorsSync,
  scope,
  setNumThreads,
} from '../lib/index.js'
import { agreement } from './agreement.js'
import { type Kind, kinds, quickSizes, seedSizes } from './layer.js'
import { clock, inTurns, type Participant } from './measured.js'
import { Peer } from './peer.js'
import type { Bench, Found } from './report.js'

/** How long does SoftMoE take, with as many slots as tokens, vs. soft-moe-pytorch? */
export async function softSuite({ threads, repetitions, quick, peers }: Bench): Promise<Found> {
  const { batch, tokens, dim, experts } = quick ? quickSizes : seedSizes
  const count = Math.max(...threads)
  manualSeed(0)
  setNumThreads(count)
  using layer = new SoftMoE({ dim, numExperts: experts, seqLen: tokens })
  using x = randn([batch, tokens, dim], { requiresGrad: true })
  using dy = randn([batch, tokens, dim])
  const backward = () => layer.forward(x).mul(dy).sum().backward()
  const dropGradients = () => {
    layer.zeroGrad()
    x.grad = null
  }
  const forward = () => scope(() => void noGrad(() => layer.forward(x)))
  const ours = (kind: Kind): number => {
    const ms = clock(kind === 'forward' ? forward : () => scope(backward))
    dropGradients()
    return ms
  }
  const slots = experts * layer.numSlots
  const products = 2 * batch * slots * dim * (3 * tokens + 2 * layer.experts.w2.shape[2])
  const facts = { params: { N: tokens, threads: count, compute: 'f32' } }
  const peer = peers ? new Peer() : null
  const found: Found = { results: [] }
  try {
    const error = peer && (await made(peer))
    for (const kind of kinds) {
      const flops = products * (kind === 'forward' ? 1 : 3)
      const theirs: Participant[] = peer
        ? [
            {
              ...facts,
              name: `soft-moe-pytorch/soft/${kind}`,
              flops,
              error: error!,
              time: () => peer.time('soft', kind),
            },
          ]
        : []
      const against = theirs.map((other) => ({ other, measure: 'speed' as const }))
      const one = { ...facts, name: `st-moe/soft/${kind}`, flops, time: () => ours(kind), against }
      found.results.push(...(await inTurns([one, ...theirs], repetitions)))
    }
    return found
  } finally {
    peer?.end()
  }

  /** Makes theirs with our weights. The relative error of outputs and gradients; throws if they differ. */
  async function made(peer: Peer): Promise<number> {
    const [state, given, to] = ['state', 'given', 'found'].map((name) => peer.file(name))
    const options = { dim, num_experts: experts, seq_len: tokens }
    await peer.threads(count)
    scope(() => saveSafetensorsSync(state, layer.stateDict()))
    saveSafetensorsSync(given, { x, dy })
    await peer.ask({ do: 'soft', name: 'soft', options, state, given })
    await peer.ask({ do: 'outputs', name: 'soft', to })
    return scope(() => {
      const outputs = noGrad(() => layer.forward(x))
      backward()
      const gradients = { dx: x.grad!, dSlots: layer.slotEmbeds.grad! }
      const error = agreement('soft-moe-pytorch', { outputs, ...gradients }, loadSafetensorsSync(to).tensors, 1e-3)
      dropGradients()
      return error
    })
  }
}
