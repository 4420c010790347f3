import { Layer as AnyLayer, type LayerSizes } from '../cli/index.js'
import { type MoEOptions, manualSeed, SGD, scope, setNumThreads } from '../lib/index.js'
import { clock, type Participant } from './measured.js'

export type { LayerSizes }

export const kinds = ['forward', 'forward+backward'] as const
export type Kind = (typeof kinds)[number]

export const seedSizes: LayerSizes = { batch: 4, tokens: 1024, dim: 512, experts: 16 }
export const quickSizes: LayerSizes = { batch: 2, tokens: 32, dim: 24, experts: 4 }

/** Our layer, as it takes part in a comparison. */
export class Layer extends AnyLayer {
  readonly #optimizer: SGD

  /** With the weights of `like`. */
  constructor(sizes: LayerSizes, options: Omit<MoEOptions, 'dim'> = {}, like?: Layer) {
    manualSeed(0)
    super(sizes, options)
    this.#optimizer = new SGD(this.moe.parameters(), { lr: 0 })
    if (like) scope(() => this.moe.loadStateDict(like.moe.stateDict()))
  }

  time(kind: Kind, threads: number): number {
    setNumThreads(threads)
    if (kind === 'forward') return clock(() => scope(() => void this.forward()))
    const ms = clock(() => scope(() => this.step()))
    // A training step changes the weights, so nothing that was made of them may be used again.
    this.#optimizer.step() // with a rate of 0: the same values, a new version
    this.dropGradients()
    return ms
  }

  /** Of the GEMMs with the rows that are dispatched. */
  flops(kind: Kind): number {
    return 6 * this.routing.rows * this.sizes.dim * this.hidden * (kind === 'forward' ? 1 : 3)
  }

  participant(suite: string, kind: Kind, threads: number, others: readonly Participant[] = []): Participant {
    const { kept, occupancy } = this.routing
    return {
      name: `st-moe/${suite}/${kind}`,
      params: { N: this.sizes.tokens, threads, compute: this.moe.computeDtype },
      time: () => this.time(kind, threads),
      flops: this.flops(kind),
      kept,
      occupancy,
      against: others.map((other) => ({ other, measure: 'speed' })),
    }
  }
}
