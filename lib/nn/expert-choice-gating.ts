import { expertChoice } from '../ops/expert-choice.js'
import { choiceOptions, lossOptions, randomOptions } from '../ops/route-options.js'
import { checkOneMask, type RouteResult } from '../ops/routing.js'
import { fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { integer, type OptionsOf, pick, reader, type ValuesOf } from '../runtime/options.js'
import { checkTensor, type Tensor } from '../tensor/tensor.js'
import {
  capacityOf,
  failWithoutBias,
  type GatingForwardOptions,
  gatingOptions,
  readForwardOptions,
  readRandom,
} from './gating.js'
import { type LayerOptions, type Linear, layerOptions, RouterLinear } from './linear.js'
import { Module } from './module.js'
import { routerInputOptions, routerInputs } from './router-input.js'

const ownOptions = {
  /** E */
  numGates: integer({ min: 1 }),
}

/** What a layer passes on to this router. */
type Passed = readonly [
  typeof gatingOptions,
  typeof routerInputOptions,
  typeof choiceOptions,
  typeof lossOptions,
  typeof layerOptions,
]
export const passedToExpertChoice: Passed = [
  gatingOptions,
  routerInputOptions,
  choiceOptions,
  lossOptions,
  layerOptions,
]

/** Options of {@link ExpertChoiceGating}. */
export interface ExpertChoiceGatingOptions
  extends OptionsOf<typeof ownOptions>,
    OptionsOf<typeof gatingOptions>,
    OptionsOf<typeof routerInputOptions>,
    OptionsOf<typeof choiceOptions>,
    OptionsOf<typeof lossOptions>,
    LayerOptions {}

const readOptions = reader(ownOptions, ...passedToExpertChoice)

/**
 * The router of `router: 'expertChoice'`: every expert takes the tokens of its highest scores, by
 * {@link ops.expertChoice}. State: `to_gates.weight` [E, D].
 *
 * @example
 * ```ts
 * const gate = new ExpertChoiceGating({ dim: 32, numGates: 4 })
 * const { kept, capacity } = gate.forward(randn([2, 16, 32]))
 * console.log(kept.shape, capacity) // → [ 2, 16, 4 ] 5
 * ```
 */
export class ExpertChoiceGating extends Module {
  /** E */
  readonly numGates: number
  /** D → E, with a bias if there is `routerBias`; uniform in ±1/√D at the start. */
  readonly toGates: Linear
  readonly #options: ValuesOf<
    [typeof gatingOptions, typeof routerInputOptions, typeof choiceOptions, typeof lossOptions]
  >

  /** Errors: OPTION, DTYPE, DEVICE; they name `op`. */
  constructor(options: ExpertChoiceGatingOptions, op = 'ExpertChoiceGating') {
    super()
    const o = readOptions(op, options)
    this.numGates = o.numGates
    this.#options = pick(o, gatingOptions, routerInputOptions, choiceOptions, lossOptions)
    this.toGates = new RouterLinear(o.routerDim ?? o.dim, o.numGates, { ...pick(o, layerOptions), bias: o.routerBias })
  }

  /** x [B, N, D] → where its tokens go, and the losses (0 in evaluation). Errors: SHAPE, DTYPE, DEVICE, OPTION. */
  forward<D extends DType>(x: Tensor<D>, options?: GatingForwardOptions): RouteResult<D> {
    const op = 'ExpertChoiceGating.forward'
    const { mask, importance, routerInput, random, ...noise } = readForwardOptions(op, options)
    const given = readRandom(op, random)
    for (const [name, value] of Object.entries({ ...noise, ...pick(given, randomOptions) }))
      if (value !== undefined) fail('OPTION', op, `${name} is for router "topk": expert choice samples nothing`)
    checkOneMask(op, { mask, importance })
    checkTensor(op, 'x', x)
    const inputs = { ...pick(this.#options, routerInputOptions), routerInput, training: this.training }
    return expertChoice(...routerInputs(op, x, this.toGates, inputs, given), {
      capacity: capacityOf(this, x.shape[1] ?? 0, this.#options),
      training: this.training,
      mask: mask ?? importance,
      ...pick(this.#options, choiceOptions, lossOptions),
    })
  }

  /**
   * Throws: no token chooses an expert, so there is no bias.
   * @internal
   */
  updateExpertBias(_rate: number): void {
    failWithoutBias('updateExpertBias')
  }

  protected override stateName(property: string): string {
    return property === 'toGates' ? 'to_gates' : property
  }
}
