import {
  type ComputeDType,
  MoE,
  manualSeed,
  noGrad,
  type RoutingStats,
  randn,
  SGD,
  scope,
  setNumThreads,
  type Tensor,
} from '../lib/index.js'
import { type Clocks, clock, type Participant } from './measured.js'

export const kinds = ['forward', 'forward+backward'] as const
export type Kind = (typeof kinds)[number]

export interface LayerSizes {
  batch: number
  tokens: number
  dim: number
  experts: number
}

export const seedSizes: LayerSizes = { batch: 4, tokens: 1024, dim: 512, experts: 16 }
export const quickSizes: LayerSizes = { batch: 2, tokens: 32, dim: 24, experts: 4 }

/** Our layer, an input for it, and a gradient of its output. */
export class Layer {
  readonly sizes: LayerSizes
  readonly compute: ComputeDType
  readonly moe: MoE
  readonly x: Tensor
  readonly dy: Tensor
  readonly #optimizer: SGD
  #stats?: RoutingStats

  /** With the weights of `like`. */
  constructor(sizes: LayerSizes, compute: ComputeDType = 'f32', like?: Layer) {
    const { batch, tokens, dim, experts } = sizes
    manualSeed(0)
    this.sizes = sizes
    this.compute = compute
    this.moe = new MoE({ dim, numExperts: experts, computeDtype: compute })
    this.x = randn([batch, tokens, dim], { requiresGrad: true })
    this.dy = randn([batch, tokens, dim])
    this.#optimizer = new SGD(this.moe.parameters(), { lr: 0 })
    if (like) scope(() => this.moe.loadStateDict(like.moe.stateDict()))
  }

  time(kind: Kind, threads: number): Clocks {
    setNumThreads(threads)
    const clocks = clock(() => scope(() => this.#run(kind)))
    if (kind === 'forward') return clocks
    // A training step changes the weights, so nothing that was made of them may be used again.
    this.#optimizer.step() // with a rate of 0: the same values, a new version
    this.moe.zeroGrad()
    this.x.grad = null
    return clocks
  }

  #run(kind: Kind): void {
    if (kind === 'forward') return void noGrad(() => this.moe.forward(this.x))
    const { outputs, totalAuxLoss } = this.moe.forward(this.x)
    const loss = scope(() => outputs.mul(this.dy).sum().add(totalAuxLoss)) // outputs · dy is freed before the backward
    loss.backward()
  }

  /** Assignments that a forward dispatches, and their fractions. A few change from one to the next, by chance. */
  get routed(): { rows: number; kept: number; occupancy: number } {
    this.#stats ??= scope(() => noGrad(() => this.moe.forward(this.x, { stats: true }).stats!))
    const rows = this.#stats.keptPerExpert.reduce((a, b) => a + b)
    const { batch, tokens } = this.sizes
    return { rows, kept: rows / (batch * tokens * 2), occupancy: this.#stats.slotOccupancy }
  }

  /** Of the GEMMs with the rows that are dispatched. */
  flops(kind: Kind): number {
    const hidden = Math.trunc((this.sizes.dim * 8) / 3)
    return 6 * this.routed.rows * this.sizes.dim * hidden * (kind === 'forward' ? 1 : 3)
  }

  participant(suite: string, kind: Kind, threads: number, others: readonly Participant[] = []): Participant {
    const { kept, occupancy } = this.routed
    return {
      name: `st-moe/${suite}/${kind}`,
      params: { N: this.sizes.tokens, threads, compute: this.compute },
      time: () => this.time(kind, threads),
      flops: this.flops(kind),
      kept,
      occupancy,
      against: others.map((other) => ({ other, measure: 'speed' })),
    }
  }

  [Symbol.dispose](): void {
    this.moe.dispose()
    this.x.dispose()
    this.dy.dispose()
  }
}
