import { zeros } from '../create.js'
import type { DType } from '../dtype.js'
import { activationOptions } from '../ops/activation.js'
import { mul } from '../ops/binary.js'
import { combine } from '../ops/combine.js'
import { dispatch } from '../ops/dispatch.js'
import { expertFfn } from '../ops/expert-ffn.js'
import { route } from '../ops/route.js'
import type { Routing } from '../ops/routing.js'
import { sigmoid } from '../ops/unary.js'
import { boolean, integer, type OptionsOf, onlyIfSet, pick } from '../options.js'
import { allOrNone, noGrad } from '../scope.js'
import type { Tensor } from '../tensor.js'
import { Experts, type ExpertsOptions } from './experts.js'
import { gemmOptions, Linear } from './linear.js'
import { Module, type StateEntry } from './module.js'

export const sharedOptions = {
  /** Experts that every token visits, with weight 1. Default 0. */
  sharedExperts: integer({ min: 0, default: 0 }),
  /** The weight of the shared experts is sigmoid(x · w), w [D], for each token (Qwen2-MoE). Default false. */
  sharedExpertGate: onlyIfSet('sharedExperts', boolean({ default: false })),
}

/** Options of shared experts. */
export interface SharedExpertsOptions extends OptionsOf<typeof sharedOptions> {}

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
    const routing = everyToken(x, mask)
    const rows = this.#everyRow(dispatch(x, routing, { straightThrough: false }))
    return combine(rows, routing)
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

/** All tokens but padding, to one expert. */
function everyToken<D extends DType>(x: Tensor<D>, mask: Tensor): Routing<D> {
  const [B, N, D] = x.shape
  const { dtype, device } = x
  const drawn = zeros([1, B, N], { dtype, device }) // none are sampled
  return noGrad(() =>
    route(x, zeros([1, D], { dtype, device }), { topN: 1, capacity: N, training: false, mask, uniforms: drawn }),
  )
}
