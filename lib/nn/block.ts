import { allOrNone, callScope } from '../autograd/scope.js'
import { activationOptions } from '../ops/activation.js'
import { add } from '../ops/binary.js'
import { fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { boolean, type OptionsOf, pick, reader } from '../runtime/options.js'
import { checkTensor, type Tensor } from '../tensor/tensor.js'
import { Experts } from './experts.js'
import { FeedForward } from './feed-forward.js'
import { Module } from './module.js'
import { MoE } from './moe.js'
import type { MoEForwardOptions } from './moe-options.js'
import type { MoEResult } from './moe-result.js'
import { RMSNorm } from './norm.js'
import { forwardWithGrad, type GradHandle } from './with-grad.js'

const blockOptions = {
  /** A dense feed-forward before the experts. Default false. */
  addFfBefore: boolean({ default: false }),
  /** A dense feed-forward after the experts. Default true. */
  addFfAfter: boolean({ default: true }),
}

/** Options of {@link SparseMoEBlock}. */
export interface SparseMoEBlockOptions extends OptionsOf<typeof blockOptions> {}

const readOptions = reader(blockOptions)

const stateNames: Record<string, string> = { moePrenorm: 'moe_prenorm', ffBefore: 'ff_before', ffAfter: 'ff_after' }

/**
 * A mixture of experts as a residual block, as in st-moe-pytorch: x += ffBefore(x); x += moe(rmsNorm(x));
 * x += ffAfter(x). Dense feed-forwards around the experts improve quality (ST-MoE, arXiv 2202.08906, appendix C).
 *
 * @example
 * ```ts
 * const moe = new MoE({ dim: 32, numExperts: 4 })
 * const block = new SparseMoEBlock(moe, { addFfBefore: true, addFfAfter: true })
 * const { outputs, totalAuxLoss } = block.forward(randn([2, 16, 32]))
 * console.log(outputs.shape, totalAuxLoss.shape) // → [ 2, 16, 32 ] []
 * ```
 */
export class SparseMoEBlock extends Module {
  /** The layer given to the constructor; its parameters are those of the block too. */
  readonly moe: MoE
  /** Before the experts. */
  readonly moePrenorm: RMSNorm
  /** With the dtype, device, computeDtype and activation of the experts. */
  readonly ffBefore: FeedForward | null
  /** As `ffBefore`. */
  readonly ffAfter: FeedForward | null

  /** Errors: OPTION unless `moe` is a {@link MoE} whose outputs are as wide as its inputs. */
  constructor(moe: MoE, options?: SparseMoEBlockOptions) {
    super()
    const op = 'SparseMoEBlock'
    if (!(moe instanceof MoE)) fail('OPTION', op, `moe must be a MoE, got ${show(moe)}`)
    if (moe.outputDim !== moe.dim)
      fail('OPTION', op, `moe must return what it takes, got outputDim ${moe.outputDim} for dim ${moe.dim}`)
    const { addFfBefore, addFfAfter } = readOptions(op, options)
    const { dtype, device } = moe.gate.toGates.weight
    const layer = { dtype: dtype as 'f32' | 'f64', device }
    const own = moe.experts instanceof Experts ? pick(moe.experts, activationOptions) : {}
    const product = { ...layer, computeDtype: moe.computeDtype, ...own }
    this.moe = moe
    ;[this.moePrenorm, this.ffBefore, this.ffAfter] = allOrNone(() => [
      new RMSNorm(moe.dim, layer),
      addFfBefore ? new FeedForward(moe.dim, product) : null,
      addFfAfter ? new FeedForward(moe.dim, product) : null,
    ])
  }

  /** As {@link MoE.forward}; `outputs` with the residual added. */
  forward<D extends DType>(x: Tensor<D>, options?: MoEForwardOptions): MoEResult<D> {
    const op = 'SparseMoEBlock.forward'
    checkTensor(op, 'x', x)
    if (x.shape.length !== 3 || x.shape[2] !== this.moe.dim) {
      fail('SHAPE', op, `x must be [batch, tokens, ${this.moe.dim}], got ${showShape(x.shape)}`)
    }
    checkTensor(op, 'x', x, { ...layerOf(this.moe), shape: x.shape })
    return callScope(() => {
      const before = this.ffBefore ? add(this.ffBefore.forward(x), x) : x
      const result = this.moe.forward(this.moePrenorm.forward(before), options)
      const mixed = add(result.outputs, before)
      return result.withOutputs(this.ffAfter ? add(this.ffAfter.forward(mixed), mixed) : mixed)
    })
  }

  /** As {@link MoE.forwardWithGrad}. */
  forwardWithGrad(
    input: Float32Array | Float64Array,
    shape: readonly number[],
    options?: MoEForwardOptions,
  ): GradHandle {
    return forwardWithGrad('SparseMoEBlock.forwardWithGrad', this, this.moe.gate.toGates.weight, input, shape, options)
  }

  protected override stateName(property: string): string {
    return stateNames[property] ?? property
  }
}

const layerOf = ({ gate }: MoE) => ({ dtype: gate.toGates.weight.dtype, device: gate.toGates.weight.device })
