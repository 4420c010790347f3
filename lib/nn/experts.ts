import { checkInteger } from '../check.js'
import { ones } from '../create.js'
import type { ComputeDType } from '../dtype.js'
import { type Activation, type ActivationOptions, activationOptions, isGated } from '../ops/activation.js'
import { pick, reader } from '../options.js'
import { allOrNone } from '../scope.js'
import { gemmOptions, layerOptions, type ProductLayerOptions, uniformParameter } from './linear.js'
import { Module, type StateEntry } from './module.js'
import { newParameter, type Parameter } from './parameter.js'

/** H = trunc(D · mult · 2 / 3), in double precision from left to right. */
export const hiddenSize = (op: string, dim: number, mult: number): number =>
  checkInteger(op, 'the hidden size dim · mult · 2 / 3', Math.trunc((dim * mult * 2) / 3), 1)

/** Names of one expert's tensors in a state dict, for the layer index that the activation has in the reference. */
const expertNames = (first: number) =>
  [
    ['w1', `net.${first}.weight`],
    ['b1', `net.${first}.bias`],
    ['multBias', `net.${first + 1}.mult_bias`],
    ['w2', `net.${first + 2}.weight`],
    ['b2', `net.${first + 2}.bias`],
  ] as const

/** Options of {@link Experts}. */
export interface ExpertsOptions extends ProductLayerOptions, ActivationOptions {}

const readOptions = reader(layerOptions, gemmOptions, activationOptions)

/**
 * Parameters of E experts, stacked; {@link ops.expertFfn} applies them. A state dict has each expert's own,
 * `experts.{i}.net.0.weight` …, as in st-moe-pytorch. Made by {@link MoE}.
 *
 * @example
 * ```ts
 * const { experts } = new MoE({ dim: 12, numExperts: 4 })
 * if (experts instanceof Experts) console.log(experts.w1.shape, experts.w2.shape) // → [ 4, 64, 12 ] [ 4, 12, 32 ]
 * ```
 */
export class Experts extends Module {
  /** What the operands of the GEMMs are rounded to. */
  readonly computeDtype: ComputeDType
  /** Between the two linear maps; P = 2H if it is gated, else H. */
  readonly activation: Activation
  /** The formula of gelu. */
  readonly geluApproximate: 'none' | 'tanh'
  /** [E, P, D]; of gated experts the first half values, the second half gates. Uniform in ±1/√P at the start. */
  w1: Parameter
  /** [E, P], uniform in ±1/√P. */
  b1: Parameter
  /** [E, H], ones; null if the activation is not gated. */
  multBias: Parameter | null
  /** [E, D, H], uniform in ±1/√D. */
  w2: Parameter
  /** [E, D], uniform in ±1/√D. */
  b2: Parameter

  /** E, D and H. Errors: OPTION, DTYPE, DEVICE. */
  constructor(numExperts: number, dim: number, hidden: number, options?: ExpertsOptions) {
    super()
    const layer = readOptions('Experts', options)
    this.computeDtype = layer.computeDtype
    this.activation = layer.activation
    this.geluApproximate = layer.geluApproximate
    checkInteger('Experts', 'numExperts', numExperts, 1)
    checkInteger('Experts', 'dim', dim, 1)
    checkInteger('Experts', 'hidden', hidden, 1)
    const gated = isGated(layer.activation)
    const rows = gated ? 2 * hidden : hidden
    const [inner, outer] = [1 / Math.sqrt(rows), 1 / Math.sqrt(dim)]
    ;[this.w1, this.b1, this.multBias, this.w2, this.b2] = allOrNone(() => [
      uniformParameter([numExperts, rows, dim], inner, layer),
      uniformParameter([numExperts, rows], inner, layer),
      gated ? newParameter(() => ones([numExperts, hidden], pick(layer, layerOptions))) : null,
      uniformParameter([numExperts, dim, hidden], outer, layer),
      uniformParameter([numExperts, dim], outer, layer),
    ])
  }

  /** Every expert's own slices. */
  override *stateEntries(): Iterable<StateEntry> {
    for (let index = 0; index < this.w1.shape[0]; index++) yield* this.expertEntries(index, `experts.${index}.`, 0)
  }

  /** Entries of one expert whose first Linear has the number `first` in the reference's list of layers. */
  *expertEntries(index: number, prefix: string, first: number): Iterable<StateEntry> {
    for (const [property, name] of expertNames(first)) {
      const tensor = this[property]
      if (tensor) yield { name: prefix + name, tensor, index }
    }
  }
}
