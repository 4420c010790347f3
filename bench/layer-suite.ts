import { kinds, Layer, quickSizes, seedSizes } from './layer.js'
import { type Implementation, LayerPeers } from './layer-peers.js'
import type { Result } from './report.js'
import type { Bench, Found } from './suite.js'
import { inTurns } from './turns.js'

const implementations: readonly Implementation[] = ['st-moe-pytorch', 'index-pytorch']

/** How long does the layer take in float32, beside PyTorch, on each number of threads? */
export async function layerSuite({ threads, repetitions, quick, peers: withPeers }: Bench): Promise<Found> {
  const layer = new Layer(quick ? quickSizes : seedSizes)
  const peers = withPeers ? new LayerPeers(layer) : null
  const results: Result[] = []
  const versions: Record<string, string> = {}
  const errors = new Map<string, number>()
  try {
    for (const name of peers ? implementations : []) {
      await peers!.make(name, name)
      errors.set(name, await peers!.agreement(name, layer, 1e-3))
    }
    for (const count of threads) {
      if (peers) versions.pytorch = await peers.peer.threads(count)
      for (const kind of kinds) {
        const theirs = []
        for (const name of peers ? implementations : []) {
          const one = { suite: 'layer', implementation: name, ours: layer, threads: count }
          theirs.push({ ...(await peers!.participant(name, kind, one)), error: errors.get(name) })
        }
        const against = theirs.map((other) => ({ other, measure: 'speed' as const }))
        results.push(...(await inTurns([layer.participant('layer', kind, count, against), ...theirs], repetitions)))
      }
    }
  } finally {
    peers?.end()
    layer.dispose()
  }
  return { results, versions }
}
