import { boolean, number, type Option, type OptionsOf } from '../runtime/options.js'
import { declaredOptimizer, type GroupValues } from './declared.js'
import { checkDecay, pair, readOnly } from './option-kinds.js'

const firstMoment: Option<number | null> = {
  default: null,
  check: (op, name, value) => (value === null ? null : checkDecay(op, name, value, 'null or ')),
}

const options = {
  /** Learning rate; with `relativeStep` its maximum. Default 1e-2. May be set between steps: `optimizer.lr = …`. */
  lr: number({ min: 0, default: 1e-2 }),
  /** The learning rate of step t is min(lr, 1 / √t). Default true. */
  relativeStep: boolean({ default: true }),
  /** Multiplies the learning rate by max(eps[1], rms(parameter)). Default true. */
  scaleParameter: boolean({ default: true }),
  /** Added to squares of gradients; the least scale of a parameter. Default [1e-30, 1e-3]. */
  eps: pair({ default: [1e-30, 1e-3] }),
  /** The largest rms of an update, before the learning rate; above 0. Default 1. */
  clipThreshold: number({ min: Number.MIN_VALUE, default: 1 }),
  /** The second moments of step t decay by 1 − t^decayRate; at most 0. Default -0.8. */
  decayRate: number({ max: 0, default: -0.8 }),
  /** Decay rate of the first moment, in [0, 1). Default null: none, which saves its memory. Only read: it decides the state. */
  beta1: readOnly(firstMoment),
  /** Each step subtracts weightDecay · learning rate · parameter. Default 0. */
  weightDecay: number({ min: 0, default: 0 }),
}

/** Options of {@link Adafactor}. */
export interface AdafactorOptions extends OptionsOf<typeof options> {}

/** Options of a group of {@link Adafactor}. */
export interface AdafactorValues extends GroupValues<typeof options> {}

const isMatrix = (shape: readonly number[]): boolean => shape.length > 1

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
export class Adafactor extends declaredOptimizer('Adafactor', {
  options,
  state: {
    row: {
      name: 'exp_avg_sq_row',
      values: 'non-negative',
      shape: (shape) => shape.slice(0, -1),
      when: (_, shape) => isMatrix(shape),
    },
    col: {
      name: 'exp_avg_sq_col',
      values: 'non-negative',
      shape: (shape) => shape.toSpliced(-2, 1),
      when: (_, shape) => isMatrix(shape),
    },
    v: { name: 'exp_avg_sq', values: 'non-negative', when: (_, shape) => !isMatrix(shape) },
    m: { name: 'exp_avg', when: ({ beta1 }) => beta1 !== null },
  },
  numbers: ({ lr, relativeStep, scaleParameter, eps: [eps1, eps2], clipThreshold, beta1, ...others }, step) => ({
    lr: relativeStep ? Math.min(lr, 1 / Math.sqrt(step)) : lr,
    eps1,
    eps2,
    clip: clipThreshold,
    beta1: beta1 ?? 0,
    scale: scaleParameter ? 1 : 0,
    ...others,
  }),
  matrices: true,
}) {}
