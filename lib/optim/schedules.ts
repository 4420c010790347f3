import { boolean, integer, number, type OptionsOf, optional, reader } from '../runtime/options.js'
import { type ScheduledOptimizer, StepSchedule } from './schedule.js'

const warmUpOptions = {
  /** Steps of linear warm-up: the rate of step t, from 0, is base · (t + 1) / warmUp. Default 0. */
  warmUp: integer({ min: 0, default: 0 }),
  /** Warm-up from 0, base · t / warmUp, as in transformers: the first step changes nothing. Default false. */
  fromZero: boolean({ default: false }),
}

const decayOptions = {
  /** Steps of the run: the decay ends there, and the rate stays. */
  steps: integer({ min: 1 }),
  /** Steps of linear warm-up, at most `steps`: the rate of step t, from 0, is base · (t + 1) / warmUp. Default 0. */
  warmUp: integer({ min: 0, atMost: 'steps', default: 0 }),
  /** Warm-up from 0, base · t / warmUp, as in transformers: the first step changes nothing. Default false. */
  fromZero: boolean({ default: false }),
  /** The part of the base that the decay ends at, from 0 to 1. Default 0. */
  minRatio: number({ min: 0, max: 1, default: 0 }),
}

const inverseSqrtOptions = {
  ...warmUpOptions,
  /** The decay is √(timescale / (t − warmUp + timescale)). Default: warmUp, or 10,000 without. */
  timescale: optional(integer({ min: 1 })),
}

/** Options of {@link ConstantSchedule}. */
export interface ConstantScheduleOptions extends OptionsOf<typeof warmUpOptions> {}
/** Options of {@link LinearSchedule} and {@link CosineSchedule}. */
export interface DecayScheduleOptions extends OptionsOf<typeof decayOptions> {}
/** Options of {@link InverseSqrtSchedule}. */
export interface InverseSqrtScheduleOptions extends OptionsOf<typeof inverseSqrtOptions> {}

const readWarmUp = reader(warmUpOptions)
const readDecay = reader(decayOptions)
const readInverseSqrt = reader(inverseSqrtOptions)

type WarmUp = ReturnType<typeof readWarmUp>
type Decay = ReturnType<typeof readDecay>

/** Linear warm-up, then what the class adds. */
abstract class WarmUpSchedule<O extends WarmUp> extends StepSchedule<O> {
  protected override rate(base: number, t: number): number {
    const { warmUp, fromZero } = this.options
    return t < warmUp ? (base * (fromZero ? t : t + 1)) / warmUp : this.after(base, t)
  }

  /** @internal The rate of step t, after the warm-up. */
  protected abstract after(base: number, t: number): number
}

/** The part of the decay that is done at step t, from 0 to 1. */
const progressOf = ({ warmUp, steps }: Decay, t: number): number =>
  Math.min(1, (t - warmUp) / Math.max(1, steps - warmUp))

/**
 * Linear warm-up, then the base: get_constant_schedule_with_warmup of transformers with `fromZero`.
 *
 * @example
 * ```ts
 * const optimizer = new AdamW(new Linear(4, 1).parameters(), { lr: 1e-3 })
 * const schedule = new ConstantSchedule(optimizer, { warmUp: 2 })
 * schedule.step()
 * console.log(optimizer.lr) // → 0.001
 * ```
 */
export class ConstantSchedule extends WarmUpSchedule<WarmUp> {
  /** Errors: OPTION. */
  constructor(optimizer: ScheduledOptimizer, options?: ConstantScheduleOptions) {
    super('ConstantSchedule', optimizer, warmUpOptions, readWarmUp('ConstantSchedule', options))
  }

  /** @internal */
  protected override after(base: number): number {
    return base
  }
}

/**
 * Linear warm-up, then linear decay to base · minRatio: get_linear_schedule_with_warmup of transformers with `fromZero`.
 *
 * @example
 * ```ts
 * const optimizer = new AdamW(new Linear(4, 1).parameters(), { lr: 1e-3 })
 * const schedule = new LinearSchedule(optimizer, { steps: 100, warmUp: 10 })
 * schedule.moveTo(55)
 * console.log(optimizer.lr) // → 0.0005
 * ```
 */
export class LinearSchedule extends WarmUpSchedule<Decay> {
  /** Errors: OPTION. */
  constructor(optimizer: ScheduledOptimizer, options: DecayScheduleOptions) {
    super('LinearSchedule', optimizer, decayOptions, readDecay('LinearSchedule', options))
  }

  /** @internal */
  protected override after(base: number, t: number): number {
    const { minRatio } = this.options
    return base * (minRatio + (1 - minRatio) * (1 - progressOf(this.options, t)))
  }
}

/**
 * Linear warm-up, then half a cosine down to base · minRatio (Loshchilov and Hutter, arXiv 1608.03983, §3, without
 * restarts): get_cosine_with_min_lr_schedule_with_warmup of transformers with `fromZero`.
 *
 * @example
 * ```ts
 * const optimizer = new AdamW(new Linear(4, 1).parameters(), { lr: 1e-3 })
 * const schedule = new CosineSchedule(optimizer, { steps: 100, warmUp: 10, minRatio: 0.1 })
 * schedule.moveTo(100)
 * console.log(optimizer.lr) // → 0.0001
 * ```
 */
export class CosineSchedule extends WarmUpSchedule<Decay> {
  /** Errors: OPTION. */
  constructor(optimizer: ScheduledOptimizer, options: DecayScheduleOptions) {
    super('CosineSchedule', optimizer, decayOptions, readDecay('CosineSchedule', options))
  }

  /** @internal */
  protected override after(base: number, t: number): number {
    const { minRatio } = this.options
    return base * (minRatio + (1 - minRatio) * 0.5 * (1 + Math.cos(Math.PI * progressOf(this.options, t))))
  }
}

/**
 * Linear warm-up, then decay as 1 / √t, which needs no number of steps (Raffel et al., arXiv 1910.10683, §3.1.2):
 * get_inverse_sqrt_schedule of transformers with `fromZero`.
 *
 * @example
 * ```ts
 * const optimizer = new AdamW(new Linear(4, 1).parameters(), { lr: 1e-2 })
 * const schedule = new InverseSqrtSchedule(optimizer, { warmUp: 100 })
 * schedule.moveTo(400)
 * console.log(optimizer.lr) // → 0.005
 * ```
 */
export class InverseSqrtSchedule extends WarmUpSchedule<ReturnType<typeof readInverseSqrt>> {
  /** Errors: OPTION. */
  constructor(optimizer: ScheduledOptimizer, options?: InverseSqrtScheduleOptions) {
    super('InverseSqrtSchedule', optimizer, inverseSqrtOptions, readInverseSqrt('InverseSqrtSchedule', options))
  }

  /** @internal */
  protected override after(base: number, t: number): number {
    const { warmUp, timescale = warmUp || 10_000 } = this.options
    return base * Math.sqrt(timescale / (t - warmUp + timescale))
  }
}
