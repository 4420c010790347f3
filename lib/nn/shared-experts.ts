import { allOrNone } from '../autograd/scope.js'
import { activationOptions } from '../ops/activation.js'
import { mul } from '../ops/binary.js'
import { expertFfn } from '../ops/expert-ffn.js'
import { sigmoid } from '../ops/unary.js'
import type { DType } from '../runtime/dtype.js'
import { pick } from '../runtime/options.js'
import type { Tensor } from '../tensor/tensor.js'
import { Experts, type ExpertsOptions } from './experts.js'
import { gemmOptions, Linear } from './linear.js'
import { Module } from './module.js'
import { withoutPadding } from './padding.js'
import type { StateEntry } from './state.js'

/**
 * Experts that every token visits, as one of their joint hidden width, in the layout of {@link Experts} with E = 1. Made by
 * {@link MoE} from `sharedExperts` (DeepSeekMoE, arXiv 2401.06066). State: `net.0.weight` … and `gate.weight` [1, D].
 *
 * @example
 * ```ts
 * const moe = new MoE({ dim: 12, numExperts: 4, sharedExperts: 2, sharedExpertGate: true })
 * console.log(moe.sharedExperts?.experts.w1.shape, moe.sharedExperts?.gate?.weight.shape) // → [ 1, 128, 12 ] [ 1, 12 ]
 * ```
 */
export class SharedExperts extends Module {
  /** E = 1 */
  readonly experts: Experts
  /** D → 1, or null: the weight is 1. */
  readonly gate: Linear | null

  /** D, their joint H, and whether there is a gate. Errors: OPTION, DTYPE, DEVICE. */
  constructor(dim: number, hidden: number, gated: boolean, options?: ExpertsOptions) {
    super()
    ;[this.experts, this.gate] = allOrNone(() => {
      const experts = new Experts(1, dim, hidden, options)
      const { dtype, device } = experts.w1
      return [experts, gated ? new Linear(dim, 1, { dtype: dtype as 'f32' | 'f64', device, bias: false }) : null]
    })
  }

  /** x [B, N, D] → [B, N, O]; zeros for padding, whose entries of the mask [B, N] are 0. */
  forward<D extends DType>(x: Tensor<D>, mask: Tensor<'i32'> | null): Tensor<D> {
    if (!mask) return this.#everyRow(x)
    return withoutPadding(this.#everyRow(withoutPadding(x, mask)), mask)
  }

  #everyRow<D extends DType>(x: Tensor<D>): Tensor<D> {
    const y = expertFfn(x, null, this.experts, pick(this.experts, gemmOptions, activationOptions))
    return this.gate ? mul(y, sigmoid(this.gate.forward(x))) : y
  }

  /** Those of the one expert, and the gate. */
  override *stateEntries(): Iterable<StateEntry> {
    yield* this.experts.expertEntries(0, '', 0)
    if (this.gate) yield { name: 'gate.weight', tensor: this.gate.weight }
  }
}
