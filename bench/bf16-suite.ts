import { kinds, Layer, quickSizes, seedSizes } from './layer.js'
import { LayerPeers } from './layer-peers.js'
import type { Result } from './report.js'
import type { Bench, Found } from './suite.js'
import { inTurns, type Participant } from './turns.js'

const computes = ['bf16', 'autocast'] as const

/**
 * How much faster is bf16, and how does it compare with index-based PyTorch in bf16? Both ways of PyTorch are timed:
 * weights held in bf16, and float32 weights under autocast. Ours has float32 weights.
 */
export async function bf16Suite({ threads, repetitions, quick, peers: withPeers }: Bench): Promise<Found> {
  const sizes = quick ? quickSizes : seedSizes
  const count = Math.max(...threads)
  const exact = new Layer(sizes)
  const rounded = Layer.like(exact, sizes, 'bf16')
  const peers = withPeers ? new LayerPeers(exact) : null
  const results: Result[] = []
  try {
    await peers?.peer.threads(count)
    for (const compute of peers ? computes : []) {
      await peers!.make(compute, 'index-pytorch', compute)
      await peers!.agreement(compute, rounded, 5e-2)
    }
    for (const kind of kinds) {
      const f32 = exact.participant('bf16', kind, count)
      const theirs: Participant[] = []
      for (const compute of peers ? computes : []) {
        const one = {
          suite: 'bf16',
          implementation: 'index-pytorch',
          compute,
          ours: rounded,
          threads: count,
        } as const
        theirs.push(await peers!.participant(compute, kind, one))
      }
      const against = [f32, ...theirs].map((other) => ({ other, measure: 'speed' as const }))
      const ours = rounded.participant('bf16', kind, count, against)
      results.push(...(await inTurns([ours, f32, ...theirs], repetitions)))
    }
  } finally {
    peers?.end()
    exact.dispose()
    rounded.dispose()
  }
  return { results }
}
