import { onFailure, refuseInCapture } from '../autograd/context.js'
import { checkNumber } from '../runtime/check.js'
import { integer, number, type OptionsOf, oneOf, optional, reader } from '../runtime/options.js'
import { Schedule, type ScheduledOptimizer } from './schedule.js'

const plateauOptions = {
  /** Whether a smaller or a larger metric is better. Default 'min'. */
  mode: oneOf(['min', 'max'], { default: 'min' }),
  /** What a reduction multiplies the learning rates by, from 0 to 1. Default 0.1. */
  factor: number({ min: 0, max: 1, default: 0.1 }),
  /** How many steps in a row may bring nothing better; the next one reduces. Default 10. */
  patience: integer({ min: 0, default: 10 }),
  /** By how much a better metric must be better. Default 1e-4. */
  threshold: number({ min: 0, default: 1e-4 }),
  /** 'rel': the threshold is a part of the best metric; 'abs': a difference. Default 'rel'. */
  thresholdMode: oneOf(['rel', 'abs'], { default: 'rel' }),
  /** Steps after a reduction that do not count. Default 0. */
  cooldown: integer({ min: 0, default: 0 }),
  /** The part of the base that the rates stay above, from 0 to 1. Default 0. */
  minRatio: number({ min: 0, max: 1, default: 0 }),
}

/** Options of {@link PlateauSchedule}. */
export interface PlateauScheduleOptions extends OptionsOf<typeof plateauOptions> {}

const progress = {
  best: optional(number({})),
  bad: integer({ min: 0, default: 0 }),
  cooling: integer({ min: 0, default: 0 }),
  scale: number({ min: 0, max: 1, default: 1 }),
}

const readOptions = reader(plateauOptions)
const readProgress = reader(progress)
type Values = ReturnType<typeof readOptions>
type Progress = ReturnType<typeof readProgress>

/**
 * Reduces the learning rates when a metric, such as the loss on held-out text, has stopped improving: the rules of
 * torch.optim.lr_scheduler.ReduceLROnPlateau.
 *
 * @example
 * ```ts
 * const optimizer = new AdamW(new Linear(4, 1).parameters(), { lr: 1e-2 })
 * const schedule = new PlateauSchedule(optimizer, { factor: 0.5, patience: 1 })
 * for (const loss of [2, 1, 1, 1]) schedule.step(loss)
 * console.log(optimizer.lr) // → 0.005
 * ```
 */
export class PlateauSchedule extends Schedule {
  #options: Values
  #progress: Progress = readProgress('PlateauSchedule', {})

  /** Errors: OPTION. */
  constructor(optimizer: ScheduledOptimizer, options?: PlateauScheduleOptions) {
    super('PlateauSchedule', optimizer)
    this.#options = readOptions('PlateauSchedule', options)
  }

  /** Those of the constructor or the last {@link Schedule.setState}. */
  get options(): Readonly<Required<PlateauScheduleOptions>> {
    return this.#options
  }

  /** Takes the next metric. Errors: OPTION unless it is finite; UNSUPPORTED in a captured step. */
  step(metric: number): void {
    const op = 'PlateauSchedule.step'
    checkNumber(op, 'metric', metric)
    refuseInCapture(op, 'it sets the learning rates only once')
    const { patience, cooldown, factor, minRatio } = this.#options
    let { best, bad, cooling, scale } = this.#progress
    if (this.#isBetter(metric, best)) [best, bad] = [metric, 0]
    else bad++
    if (cooling > 0) [cooling, bad] = [cooling - 1, 0]
    if (bad > patience) [scale, cooling, bad] = [Math.max(scale * factor, minRatio), cooldown, 0]
    const before = this.#progress
    onFailure(() => {
      this.#progress = before
    })
    this.#progress = { best, bad, cooling, scale }
    this.setRates(this.count + 1)
  }

  #isBetter(metric: number, best: number | undefined): boolean {
    if (best === undefined) return true
    const { mode, threshold, thresholdMode } = this.#options
    const sign = mode === 'min' ? -1 : 1
    const needed = thresholdMode === 'rel' ? best * (1 + sign * threshold) : best + sign * threshold
    return mode === 'min' ? metric < needed : metric > needed
  }

  protected override rate(base: number): number {
    return base * this.#progress.scale
  }

  /** @internal */
  protected override declared() {
    return { options: plateauOptions, own: progress }
  }

  /** @internal */
  protected override values() {
    return { options: this.#options, own: this.#progress }
  }

  /** @internal */
  protected override take(options: object, own: object): void {
    this.#options = options as Values
    this.#progress = own as Progress
  }
}
