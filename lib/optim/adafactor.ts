import { checkNumber, copyArray, fail } from '../runtime/check.js'
import { type Handle, native } from '../runtime/native.js'
import { type ReplayRow, replayRow } from '../runtime/native-ops.js'
import { boolean, checkValues, number, type Option, type OptionsOf, reader } from '../runtime/options.js'
import { releaseAll } from '../tensor/handles.js'
import { handleOf, type Tensor } from '../tensor/tensor.js'
import type { OptimizerParameters } from './groups.js'
import { Optimizer, type ParameterUpdate } from './optimizer.js'
import type { StateTensors } from './state.js'

const epsilons: Option<readonly [number, number]> = {
  default: [1e-30, 1e-3],
  check(op, name, value) {
    const given = copyArray(op, name, value, 2)
    if (given.length !== 2) fail('OPTION', op, `${name} must be two numbers, got ${given.length}`)
    const [first, second] = given.map((eps, i) => checkNumber(op, `${name}[${i}]`, eps, 0))
    return [first, second]
  },
}

const firstMoment: Option<number | null> = {
  default: null,
  check(op, name, value) {
    if (value === null || checkNumber(op, name, value, 0) < 1) return value as number | null
    return fail('OPTION', op, `${name} must be null or below 1, got ${value}`)
  },
}

const adafactorOptions = {
  /** Learning rate; with `relativeStep` its maximum. Default 1e-2. May be set between steps: `optimizer.lr = …`. */
  lr: number({ min: 0, default: 1e-2 }),
  /** The learning rate of step t is min(lr, 1 / √t). Default true. */
  relativeStep: boolean({ default: true }),
  /** Multiplies the learning rate by max(eps[1], rms(parameter)). Default true. */
  scaleParameter: boolean({ default: true }),
  /** Added to squares of gradients; the least scale of a parameter. Default [1e-30, 1e-3]. */
  eps: epsilons,
  /** The largest rms of an update, before the learning rate; above 0. Default 1. */
  clipThreshold: number({ min: Number.MIN_VALUE, default: 1 }),
  /** The second moments of step t decay by 1 − t^decayRate; at most 0. Default -0.8. */
  decayRate: number({ max: 0, default: -0.8 }),
  /** Decay rate of the first moment, in [0, 1). Default null: none, which saves its memory. */
  beta1: firstMoment,
  /** Each step subtracts weightDecay · learning rate · parameter. Default 0. */
  weightDecay: number({ min: 0, default: 0 }),
}

/** Options of {@link Adafactor}. */
export interface AdafactorOptions extends OptionsOf<typeof adafactorOptions> {}

/** Options of a group of {@link Adafactor}. */
export interface AdafactorValues extends Required<Omit<AdafactorOptions, 'beta1'>> {
  /** Only read: it decides the state. */
  readonly beta1: number | null
}

const readOptions = reader(adafactorOptions)

/**
 * Adafactor (Shazeer and Stern, arXiv 1804.04235), with the update and the defaults of transformers' Adafactor. Of a
 * parameter [..., R, D], such as the experts' [E, R, D], the second moments are those of the rows [..., R] and columns
 * [..., D] of each matrix: almost no memory. Those with one axis or none have one per element.
 *
 * transformers' `warmup_init` is `new ConstantSchedule(optimizer, { warmUp: 10_000 })`.
 *
 * @example
 * ```ts
 * const model = new MoE({ dim: 16, numExperts: 4 })
 * const optimizer = new Adafactor(model.parameters())
 * scope(() => model.forward(ones([1, 8, 16])).outputs.square().mean().backward())
 * optimizer.step()
 * console.log(optimizer.stateDict()['0.exp_avg_sq_row'].shape) // → [ 4 ]
 * ```
 */
export class Adafactor extends Optimizer<AdafactorValues> {
  /** Learning rate; may be set between steps, like the other options. See {@link Optimizer} for several groups. */
  declare lr: number
  /** See {@link AdafactorOptions.relativeStep}. */
  declare relativeStep: boolean
  /** See {@link AdafactorOptions.scaleParameter}. */
  declare scaleParameter: boolean
  /** See {@link AdafactorOptions.eps}. */
  declare eps: readonly [number, number]
  /** See {@link AdafactorOptions.clipThreshold}. */
  declare clipThreshold: number
  /** See {@link AdafactorOptions.decayRate}. */
  declare decayRate: number
  /** See {@link AdafactorOptions.beta1}. */
  declare readonly beta1: number | null
  /** See {@link AdafactorOptions.weightDecay}. */
  declare weightDecay: number

  /** Parameters, or groups of them with options of their own. Errors: OPTION, DISPOSED. */
  constructor(params: OptimizerParameters<AdafactorOptions>, options?: AdafactorOptions) {
    super('Adafactor', params, readOptions('Adafactor', options))
  }

  protected override checkedOptions(op: string, source: object, prefix: string): AdafactorValues {
    return checkValues(op, source, adafactorOptions, prefix)
  }

  protected override stateTensors({ beta1 }: AdafactorValues, shape: readonly number[]): StateTensors {
    const second = {
      exp_avg_sq_row: { values: 'non-negative', shape: shape.slice(0, -1) },
      exp_avg_sq_col: { values: 'non-negative', shape: shape.toSpliced(-2, 1) },
    } as const
    return {
      ...(shape.length > 1 ? second : { exp_avg_sq: 'non-negative' }),
      ...(beta1 === null ? {} : { exp_avg: 'any' }),
    }
  }

  /** @internal */
  protected override replayRow(step: number, options: AdafactorValues): ReplayRow {
    return replayRow.adafactor({ step, ...numbersOf(step, options) })
  }

  protected override update(updates: readonly ParameterUpdate<AdafactorValues>[]): void {
    const views: Handle[] = []
    /** A parameter's tensor as a matrix at least. */
    const matrix = (tensor: Tensor | undefined): Handle | null => {
      if (!tensor) return null
      if (tensor.shape.length > 1) return handleOf(tensor)
      const view = native.reshape(handleOf(tensor), [1, tensor.size])
      views.push(view)
      return view
    }
    try {
      native.adafactor(
        updates.map(({ parameter, grad, step, tensors, options }) => ({
          p: matrix(parameter)!,
          g: matrix(grad)!,
          row: tensors.exp_avg_sq_row ? handleOf(tensors.exp_avg_sq_row) : null,
          col: tensors.exp_avg_sq_col ? handleOf(tensors.exp_avg_sq_col) : null,
          v: matrix(tensors.exp_avg_sq),
          m: matrix(tensors.exp_avg),
          step,
          ...numbersOf(step, options),
        })),
      )
    } finally {
      releaseAll(views)
    }
  }
}

/** The numbers of an update. */
function numbersOf(step: number, options: AdafactorValues) {
  const { lr, relativeStep, scaleParameter, eps, clipThreshold, decayRate, beta1, weightDecay } = options
  return {
    lr: relativeStep ? Math.min(lr, 1 / Math.sqrt(step)) : lr,
    decayRate,
    eps1: eps[0],
    eps2: eps[1],
    clip: clipThreshold,
    beta1: beta1 ?? 0,
    weightDecay,
    scale: scaleParameter ? 1 : 0,
  }
}
