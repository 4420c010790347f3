import { onFailure, refuseInCapture } from '../autograd/context.js'
import type { StateDict } from '../nn/state.js'
import { checkFit, checkInteger, checkNumber, copyArray, fail } from '../runtime/check.js'
import { markCopy, show } from '../runtime/errors.js'
import { type DeclaredOptions, integer, type Option, reader, unchecked } from '../runtime/options.js'
import { isOptimizer, type Optimizer } from './optimizer.js'

/** The option that a schedule sets. */
export interface LearningRate {
  /** Learning rate of a group. */
  lr: number
}

/** An optimizer whose learning rates a schedule can set. */
export type ScheduledOptimizer = Optimizer<LearningRate>

/** The state of a schedule, plain JSON. */
export interface ScheduleState {
  /** The class. */
  readonly kind: string
  /** Number of calls of `step`. */
  readonly count: number
  /** The learning rate of each group that the schedule multiplies. */
  readonly base: readonly number[]
  /** The options of the constructor. */
  readonly options: object
  /** What else decides the next step. */
  readonly [other: string]: unknown
}

/** Whether a value is a Schedule of this copy of the package. */
export let isSchedule: (value: unknown) => value is Schedule

/** For a checkpoint: all is in the options. */
export const checkpointOfSchedule = (schedule: Schedule): { state: StateDict; options: ScheduleState } => ({
  state: {},
  options: schedule.toJSON(),
})

/** Checks a state for a schedule; the returned function, which cannot fail, sets it. */
export let stageSchedule: (schedule: Schedule, op: string, what: string, dict: StateDict, state: unknown) => () => void

/**
 * Base of the schedules, which set the learning rate of each group of an optimizer: that at the construction of the
 * schedule, times a factor of the number of steps. The constructor sets those of the first step; call `step()` after each
 * step of the optimizer. `saveCheckpoint` and `loadCheckpoint` keep it bit for bit; `toJSON` and `setState` do so
 * elsewhere.
 *
 * @example
 * ```ts
 * const optimizer = new SGD(new Linear(4, 1).parameters(), { lr: 0.8 })
 * const schedule = new LinearSchedule(optimizer, { steps: 4 })
 * const rates = [optimizer.lr]
 * for (let i = 0; i < 4; i++) {
 *   schedule.step()
 *   rates.push(optimizer.lr)
 * }
 * console.log(rates.map((lr) => lr.toFixed(1)).join()) // → 0.8,0.6,0.4,0.2,0.0
 * ```
 */
export abstract class Schedule {
  static {
    markCopy(Schedule)
  }

  /** Whose learning rates this sets. */
  readonly optimizer: ScheduledOptimizer
  readonly #op: string
  #base: readonly number[]
  #count = 0

  /** `op` is the class in errors. Errors: OPTION unless all groups of the optimizer have a learning rate. */
  protected constructor(op: string, optimizer: ScheduledOptimizer) {
    if (!isOptimizer(optimizer)) fail('OPTION', op, `optimizer must be an optimizer, got ${show(optimizer)}`)
    this.#op = op
    this.optimizer = optimizer
    this.#base = optimizer.groups.map(({ lr }, i) => checkNumber(op, `optimizer.groups[${i}].lr`, lr, 0))
  }

  /** Number of calls of `step`. */
  get count(): number {
    return this.#count
  }

  /** The learning rate of each group that this multiplies. */
  get base(): readonly number[] {
    return this.#base
  }

  /** The learning rate of a group whose base is `base` after `count` steps. */
  protected abstract rate(base: number, count: number): number

  /** @internal The declared options, and what else the state has. */
  protected abstract declared(): { options: DeclaredOptions; own: Record<string, Option<unknown>> }

  /** @internal The values of the state: the options, and what else decides the next step. */
  protected abstract values(): { options: object; own: object }

  /** @internal Takes values of {@link values}, checked. */
  protected abstract take(options: object, own: object): void

  /** Sets the learning rates that belong to `count` steps. */
  protected setRates(count: number): void {
    refuseInCapture(`${this.#op}.step`, 'it sets the learning rates only once')
    const before = { count: this.#count, rates: this.optimizer.groups.map(({ lr }) => lr) }
    onFailure(() => {
      this.#count = before.count
      for (const [i, group] of this.optimizer.groups.entries()) group.lr = before.rates[i]
    })
    this.#count = count
    for (const [i, group] of this.optimizer.groups.entries()) group.lr = this.rate(this.#base[i], count)
  }

  /** The argument of {@link Schedule.setState}. */
  toJSON(): ScheduleState {
    const { options, own } = this.values()
    return { kind: this.#op, count: this.#count, base: [...this.#base], options: { ...options }, ...own }
  }

  /**
   * Continues from a state of {@link Schedule.toJSON}, options included, and sets the learning rates. Errors: OPTION;
   * nothing changes then.
   */
  setState(state: ScheduleState): void {
    const op = `${this.#op}.setState`
    refuseInCapture(op, 'it sets the learning rates only once')
    this.#staged(op, state)()
  }

  #staged(op: string, state: unknown): () => void {
    if (typeof state !== 'object' || state === null || Array.isArray(state))
      fail('OPTION', op, `state must be the object of toJSON(), got ${show(state)}`)
    const { options: declared, own } = this.declared()
    const read = reader({
      kind: unchecked(),
      count: integer({ min: 0 }),
      base: unchecked(),
      options: unchecked(),
      ...own,
    })
    const { kind, count, base, options, ...rest } = read(op, state)
    if (kind !== this.#op) fail('OPTION', op, `state must be of ${this.#op}, got ${show(kind)}`)
    const { length } = this.optimizer.groups
    const bases = copyArray(op, 'base', base, length).map((lr, i) => checkNumber(op, `base[${i}]`, lr, 0))
    if (bases.length !== length) fail('OPTION', op, `base must hold ${length} learning rates, got ${bases.length}`)
    const checked = reader(declared)(op, options)
    return () => {
      this.#base = bases
      this.take(checked, rest)
      this.setRates(count)
    }
  }

  static {
    isSchedule = (value): value is Schedule => typeof value === 'object' && value !== null && #base in value
    stageSchedule = (schedule, op, what, _, state) => checkFit(op, what, () => schedule.#staged(op, state))
  }
}

/**
 * A schedule that is a function of the number of steps.
 *
 * @example
 * ```ts
 * const optimizer = new SGD(new Linear(4, 1).parameters(), { lr: 1 })
 * const schedule: StepSchedule<object> = new CosineSchedule(optimizer, { steps: 100 })
 * schedule.moveTo(50)
 * console.log(optimizer.lr) // → 0.5
 * ```
 */
export abstract class StepSchedule<O extends object> extends Schedule {
  readonly #declared: DeclaredOptions
  #options: O

  /** @internal */
  protected constructor(op: string, optimizer: ScheduledOptimizer, declared: DeclaredOptions, options: O) {
    super(op, optimizer)
    this.#declared = declared
    this.#options = options
    this.setRates(0)
  }

  /** Those of the constructor or the last {@link Schedule.setState}. */
  get options(): Readonly<O> {
    return this.#options
  }

  /** Sets the learning rates of the next step. Errors: UNSUPPORTED in a captured step: call it between replays. */
  step(): void {
    this.setRates(this.count + 1)
  }

  /** Sets the learning rates that `count` calls of `step` lead to. Errors: OPTION. */
  moveTo(count: number): void {
    this.setRates(checkInteger(`${this.constructor.name}.moveTo`, 'count', count, 0))
  }

  /** @internal */
  protected override declared() {
    return { options: this.#declared, own: {} }
  }

  /** @internal */
  protected override values() {
    return { options: this.#options, own: {} }
  }

  /** @internal */
  protected override take(options: object): void {
    this.#options = options as O
  }
}
