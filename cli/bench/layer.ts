import {
  expertHiddenSize,
  MoE,
  type MoEOptions,
  noGrad,
  type RoutingStats,
  randn,
  scope,
  type Tensor,
} from '../../lib/index.js'

export interface LayerSizes {
  batch: number
  tokens: number
  dim: number
  experts: number
}

/** A layer to be timed, an input for it, and a gradient of its output. */
export class Layer {
  readonly sizes: LayerSizes
  readonly moe: MoE
  readonly x: Tensor
  readonly dy: Tensor
  #stats?: RoutingStats

  constructor(sizes: LayerSizes, options: Omit<MoEOptions, 'dim'> = {}) {
    const { batch, tokens, dim, experts } = sizes
    this.sizes = sizes
    this.moe = new MoE({ dim, numExperts: experts, ...options })
    this.x = randn([batch, tokens, dim], { requiresGrad: true })
    this.dy = randn([batch, tokens, dim])
  }

  get hidden(): number {
    return expertHiddenSize(this.sizes.dim, 4)
  }

  /** The output, without a tape. */
  forward(): Tensor {
    return noGrad(() => this.moe.forward(this.x).outputs)
  }

  /** Forward and backward: gradients of input and parameters from the gradient of the output and the losses. */
  step(): void {
    const { outputs, totalAuxLoss } = this.moe.forward(this.x)
    const loss = scope(() => outputs.mul(this.dy).sum().add(totalAuxLoss)) // outputs · dy is freed before the backward
    loss.backward()
  }

  dropGradients(): void {
    this.moe.zeroGrad()
    this.x.grad = null
  }

  /** What a forward dispatches. A few assignments change from one to the next, by chance. */
  get routing(): { rowsPerExpert: number[]; rows: number; kept: number; occupancy: number } {
    this.#stats ??= scope(() => noGrad(() => this.moe.forward(this.x, { stats: true }).stats!))
    const { keptPerExpert: rowsPerExpert, droppedPerChoice, slotOccupancy: occupancy } = this.#stats
    const rows = rowsPerExpert.reduce((a, b) => a + b)
    const kept = droppedPerChoice.reduce((sum, dropped) => sum + 1 - dropped, 0) / droppedPerChoice.length
    return { rowsPerExpert, rows, kept, occupancy }
  }

  [Symbol.dispose](): void {
    for (const one of [this.moe, this.x, this.dy]) one.dispose()
  }
}
