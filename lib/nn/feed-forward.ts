import { checkInteger, checkNumber, checkOptions } from '../check.js'
import { expertFfn } from '../ops/expert-ffn.js'
import type { Tensor } from '../tensor.js'
import { Experts, hiddenWidth } from './experts.js'
import { type ProductLayerOptions, productLayerNames, productLayerOptions } from './linear.js'
import { Module, type StateEntry } from './module.js'
import { RMSNorm } from './norm.js'

export interface FeedForwardOptions extends ProductLayerOptions {
  /** Hidden width is trunc(dim · mult · 2 / 3). Default 4. */
  mult?: number
}

/** RMSNorm, then one GEGLU expert that every token passes: x [..., D] → [..., D]. The residual is the caller's. */
export class FeedForward extends Module {
  norm: RMSNorm
  expert: Experts

  constructor(dim: number, options?: FeedForwardOptions) {
    super()
    const op = 'FeedForward'
    const o = checkOptions<FeedForwardOptions>(op, options, ['mult', ...productLayerNames])
    checkInteger(op, 'dim', dim, 1)
    const layer = productLayerOptions(op, o)
    this.norm = new RMSNorm(dim, { dtype: layer.dtype, device: layer.device })
    this.expert = new Experts(1, dim, hiddenWidth(op, dim, checkNumber(op, 'mult', o.mult ?? 4, 0)), layer)
  }

  forward(x: Tensor): Tensor {
    return expertFfn(this.norm.forward(x), null, this.expert, { computeDtype: this.expert.computeDtype })
  }

  override *stateEntries(): Iterable<StateEntry> {
    yield { name: 'net.0.gamma', tensor: this.norm.gamma }
    yield* this.expert.expertEntries(0, '', 1)
  }
}
