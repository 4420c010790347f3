import { allOrNone, callScope } from '../autograd/scope.js'
import { type ActivationOptions, activationOptions } from '../ops/activation.js'
import { expertFfn } from '../ops/expert-ffn.js'
import { checkInteger } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { number, type OptionsOf, pick, reader } from '../runtime/options.js'
import type { Tensor } from '../tensor/tensor.js'
import { Experts, expertHiddenSize } from './experts.js'
import { gemmOptions, layerOptions, type ProductLayerOptions } from './linear.js'
import { Module } from './module.js'
import { RMSNorm } from './norm.js'
import type { StateEntry } from './state.js'

const feedForwardOptions = {
  /** The hidden size is trunc(dim · mult · 2 / 3). Default 4. */
  mult: number({ min: 0, default: 4 }),
}

/** Options of {@link FeedForward}. */
export interface FeedForwardOptions
  extends ProductLayerOptions,
    ActivationOptions,
    OptionsOf<typeof feedForwardOptions> {}

const readOptions = reader(feedForwardOptions, layerOptions, gemmOptions, activationOptions)

/**
 * RMSNorm, then one expert, by default GEGLU, for every token: x [..., D] → [..., D], the feed-forward of
 * st-moe-pytorch. The caller adds the residual.
 *
 * @example
 * ```ts
 * const ff = new FeedForward(32)
 * const x = randn([2, 16, 32])
 * console.log(x.add(ff.forward(x)).shape) // → [ 2, 16, 32 ]
 * ```
 */
export class FeedForward extends Module {
  /** Before the expert. */
  norm: RMSNorm
  /** E = 1. */
  expert: Experts

  /** `dim` is D. Errors: OPTION, DTYPE, DEVICE. */
  constructor(dim: number, options?: FeedForwardOptions) {
    super()
    const op = 'FeedForward'
    const { mult, ...layer } = readOptions(op, options)
    checkInteger(op, 'dim', dim, 1)
    const hidden = expertHiddenSize(dim, mult, op)
    ;[this.norm, this.expert] = allOrNone(() => [
      new RMSNorm(dim, pick(layer, layerOptions)),
      new Experts(1, dim, hidden, layer),
    ])
  }

  /** x [..., D] → [..., D]. Errors: SHAPE, DTYPE, DEVICE. */
  forward<D extends DType>(x: Tensor<D>): Tensor<D> {
    return callScope(() =>
      expertFfn(this.norm.forward(x), null, this.expert, pick(this.expert, gemmOptions, activationOptions)),
    )
  }

  /** Under the names of the reference: `net.0.gamma`, `net.1.weight` … */
  override *stateEntries(): Iterable<StateEntry> {
    yield { name: 'net.0.gamma', tensor: this.norm.gamma }
    yield* this.expert.expertEntries(0, '', 1)
  }
}
