import type { MoEOptions } from '../lib/index.js'
import { kinds, Layer, quickSizes, seedSizes } from './layer.js'
import { type Implementation, LayerPeers, type PeerCompute } from './layer-peers.js'
import { inTurns, type Participant } from './measured.js'
import type { Bench, Found } from './report.js'

const implementations: readonly Implementation[] = ['st-moe-pytorch', 'index-pytorch']

/** Runs `suite` with our layer, and with those of PyTorch unless there are to be none. */
async function withLayer(
  { quick, peers: withPeers }: Bench,
  suite: (layer: Layer, peers: LayerPeers | null) => Promise<Found>,
): Promise<Found> {
  using layer = new Layer(quick ? quickSizes : seedSizes)
  const peers = withPeers ? new LayerPeers(layer) : null
  try {
    return await suite(layer, peers)
  } finally {
    peers?.end()
  }
}

/** How long does the layer take in float32, vs. PyTorch, on each number of threads? */
export const layerSuite = (bench: Bench): Promise<Found> =>
  withLayer(bench, async (layer, peers) => {
    const found: Required<Omit<Found, 'memory'>> = { results: [], versions: {} }
    for (const name of implementations) await peers?.make(name, layer, 1e-3)
    for (const threads of bench.threads) {
      if (peers) found.versions.pytorch = await peers.threads(threads)
      for (const kind of kinds) {
        const theirs = []
        for (const name of peers ? implementations : [])
          theirs.push(await peers!.participant(name, { suite: 'layer', kind, ours: layer, threads }))
        const ours = layer.participant('layer', kind, threads, theirs)
        found.results.push(...(await inTurns([ours, ...theirs], bench.repetitions)))
      }
    }
    return found
  })

/**
 * How does a training step of the layer grow with the length of a sequence? A step of st-moe-pytorch grows with its
 * square and takes half a minute at the longest, so it has few repetitions there.
 */
export const growthSuite = (bench: Bench): Promise<Found> =>
  withLayer(bench, async (first, peers) => {
    const found: Found = { results: [] }
    const [kind, threads] = ['forward+backward' as const, Math.max(...bench.threads)]
    await peers?.threads(threads)
    for (const name of implementations) await peers?.make(name)
    for (const [factor, ...repetitions] of [
      [1, 5, 5],
      [4, 2, 3],
      [8, 1, 3],
    ]) {
      using layer = new Layer({ ...first.sizes, tokens: first.sizes.tokens * factor }, {}, first)
      const theirs = []
      for (const [i, name] of peers ? implementations.entries() : [])
        theirs.push(
          await peers!.participant(name, { suite: 'growth', kind, ours: layer, threads, atMost: repetitions[i] }),
        )
      const ours = layer.participant('growth', kind, threads, theirs)
      found.results.push(...(await inTurns([ours, ...theirs], Math.min(bench.repetitions, 5))))
    }
    return found
  })

/**
 * How much faster are bf16 and bf16x3, bf16 also vs. index-based PyTorch in bf16? Both ways of PyTorch are timed:
 * weights held in bf16, and float32 weights under autocast. Our weights are float32.
 */
export const bf16Suite = (bench: Bench): Promise<Found> =>
  withLayer(bench, async (exact, peers) => {
    const found: Found = { results: [] }
    const threads = Math.max(...bench.threads)
    using rounded = new Layer(exact.sizes, { computeDtype: 'bf16' }, exact)
    using sums = new Layer(exact.sizes, { computeDtype: 'bf16x3' }, exact)
    const computes: readonly PeerCompute[] = peers ? ['bf16', 'autocast'] : []
    await peers?.threads(threads)
    for (const compute of computes) await peers!.make('index-pytorch', rounded, 5e-2, compute)
    for (const kind of kinds) {
      const f32 = exact.participant('bf16', kind, threads)
      const others = [f32]
      for (const compute of computes)
        others.push(await peers!.participant('index-pytorch', { suite: 'bf16', kind, ours: rounded, threads, compute }))
      const ours = [rounded.participant('bf16', kind, threads, others), sums.participant('bf16', kind, threads, [f32])]
      found.results.push(...(await inTurns([...ours, ...others], bench.repetitions)))
    }
    return found
  })

const routers: Readonly<Record<string, Omit<MoEOptions, 'dim'>>> = {
  dropless: { dropless: true },
  switch: { router: 'switch' },
  'switch-dropless': { router: 'switch', dropless: true },
  switchMax: { router: 'switchMax' },
  ntlb: { router: 'ntlb' },
  expertChoice: { router: 'expertChoice' },
}

/** How long do the layers of other routers take per dispatched row, vs. those of topk? */
export async function routerSuite({ threads, repetitions, quick }: Bench): Promise<Found> {
  const found: Found = { results: [] }
  const [sizes, count] = [quick ? quickSizes : seedSizes, Math.max(...threads)]
  using topk = new Layer(sizes)
  const others = Object.entries(routers).map(([name, options]) => ({ name, layer: new Layer(sizes, options) }))
  for (const kind of kinds) {
    const first = topk.participant('routers', kind, count)
    const rest = others.map(
      ({ name, layer }): Participant => ({
        ...layer.participant('routers', kind, count),
        name: `${name}/routers/${kind}`,
        against: [{ other: first, measure: 'flops' }],
      }),
    )
    found.results.push(...(await inTurns([first, ...rest], repetitions)))
  }
  for (const { layer } of others) layer[Symbol.dispose]()
  return found
}
