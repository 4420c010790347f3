import { Layer, quickSizes, seedSizes } from './layer.js'
import { LayerPeers } from './layer-peers.js'
import type { Result } from './report.js'
import type { Bench, Found } from './suite.js'
import { inTurns, type Participant } from './turns.js'

const kind = 'forward+backward'

/**
 * How does a training step of the layer grow with the length of a sequence? A step of st-moe-pytorch grows with its
 * square and takes half a minute at the longest, so it has few repetitions there.
 */
export async function growthSuite({ threads, repetitions, quick, peers: withPeers }: Bench): Promise<Found> {
  const sizes = quick ? quickSizes : seedSizes
  const count = Math.max(...threads)
  const first = new Layer(sizes)
  const peers = withPeers ? new LayerPeers(first) : null
  const results: Result[] = []
  try {
    await peers?.peer.threads(count)
    await peers?.make('st-moe-pytorch', 'st-moe-pytorch')
    await peers?.make('index-pytorch', 'index-pytorch')
    for (const [factor, few] of [
      [1, 5],
      [4, 2],
      [8, 1],
    ]) {
      const tokens = sizes.tokens * factor
      const layer = Layer.like(first, { ...sizes, tokens }, 'f32')
      const theirs: Participant[] = []
      for (const [implementation, atMost] of [
        ['st-moe-pytorch', few],
        ['index-pytorch', factor === 1 ? 5 : 3],
      ] as const) {
        if (!peers) continue
        const one = { suite: 'growth', implementation, ours: layer, threads: count, atMost }
        theirs.push(await peers.participant(implementation, kind, one))
      }
      const against = theirs.map((other) => ({ other, measure: 'speed' as const }))
      const ours = layer.participant('growth', kind, count, against)
      results.push(...(await inTurns([ours, ...theirs], Math.min(repetitions, 5))))
      layer.dispose()
    }
  } finally {
    peers?.end()
    first.dispose()
  }
  return { results }
}
