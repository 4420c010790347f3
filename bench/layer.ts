import {
  type ComputeDType,
  MoE,
  manualSeed,
  noGrad,
  randn,
  SGD,
  scope,
  setNumThreads,
  type Tensor,
} from '../lib/index.js'
import { type Clocks, clock, type Participant } from './turns.js'

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
  #kept?: number

  constructor(sizes: LayerSizes, compute: ComputeDType = 'f32') {
    const { batch, tokens, dim, experts } = sizes
    manualSeed(0)
    this.sizes = sizes
    this.compute = compute
    this.moe = new MoE({ dim, numExperts: experts, computeDtype: compute })
    this.x = randn([batch, tokens, dim], { requiresGrad: true })
    this.dy = randn([batch, tokens, dim])
    this.#optimizer = new SGD(this.moe.parameters(), { lr: 0 })
  }

  /** With the weights of `other`. */
  static like(other: Layer, sizes: LayerSizes, compute: ComputeDType): Layer {
    const layer = new Layer(sizes, compute)
    scope(() => layer.moe.loadStateDict(other.moe.stateDict()))
    return layer
  }

  run(kind: Kind): void {
    scope(() => {
      if (kind === 'forward') return void noGrad(() => this.moe.forward(this.x))
      const { outputs, totalAuxLoss } = this.moe.forward(this.x)
      const loss = scope(() => outputs.mul(this.dy).sum().add(totalAuxLoss)) // the product is freed before the backward
      loss.backward()
    })
  }

  /** Drops the gradients. A training step changes the weights, so nothing that was made of them may be used again. */
  after(kind: Kind): void {
    if (kind === 'forward') return
    this.#optimizer.step() // with a rate of 0: the same values, a new version
    this.moe.zeroGrad()
    this.x.grad = null
  }

  time(kind: Kind, threads: number): Clocks {
    setNumThreads(threads)
    const clocks = clock(() => this.run(kind))
    this.after(kind)
    return clocks
  }

  /** How many assignments a forward keeps. Chance moves a few from one to the next. */
  get kept(): number {
    this.#kept ??= scope(() =>
      noGrad(() => (this.moe.forward(this.x).routing.kept.dataSync() as Int32Array).reduce((sum, kept) => sum + kept)),
    )
    return this.#kept
  }

  /** Of the products with the rows that are kept. */
  flops(kind: Kind): number {
    const hidden = Math.trunc((this.sizes.dim * 8) / 3)
    return 6 * this.kept * this.sizes.dim * hidden * (kind === 'forward' ? 1 : 3)
  }

  shares(): { kept: number; occupancy: number } {
    const { batch, tokens, experts } = this.sizes
    const capacity = Math.max(Math.min(tokens, Math.trunc((tokens * 1.25) / experts)), 4)
    return { kept: this.kept / (batch * tokens * 2), occupancy: this.kept / (experts * batch * capacity) }
  }

  participant(suite: string, kind: Kind, threads: number, against: Participant['against'] = []): Participant {
    return {
      name: `st-moe/${suite}/${kind}`,
      params: { N: this.sizes.tokens, threads, compute: this.compute },
      time: () => this.time(kind, threads),
      flops: this.flops(kind),
      ...this.shares(),
      against,
    }
  }

  dispose(): void {
    this.moe.dispose()
    this.x.dispose()
    this.dy.dispose()
  }
}
