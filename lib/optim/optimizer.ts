import { fail, listed, showName } from '../check.js'
import { currentRecorder } from '../context.js'
import { refuseJson } from '../copies.js'
import { tensor, zeros } from '../create.js'
import { markCopy, show } from '../errors.js'
import { native } from '../native.js'
import type { StateDict } from '../nn/module.js'
import { Parameter } from '../nn/parameter.js'
import { allFinite } from '../norm.js'
import { copyLike } from '../ops/copy.js'
import type { Recorder, ReplayRow } from '../recorder.js'
import { allOrNone, keep, noGrad, scope } from '../scope.js'
import { checkTensor, handleOf, type Tensor, type TensorMeta } from '../tensor.js'

const stepMeta = { shape: [], dtype: 'f64' } as const

function misfitOf(op: string, key: string, value: unknown, meta: Pick<TensorMeta, 'shape' | 'dtype'>): string | null {
  try {
    const { device } = checkTensor(op, key, value)
    checkTensor(op, key, value, { ...meta, device })
    return null
  } catch (error) {
    return (error as Error).message.slice(op.length + 3)
  }
}

const countProblem = (value: Tensor): string | null => {
  const count = value.item()
  return Number.isSafeInteger(count) && count >= 0 ? null : `must be an integer of at least 0, got ${count}`
}

/** For 'non-negative', checks the square root, which is NaN for negative numbers. */
const numbersProblem = (value: Tensor, kind: StateTensors[string]): string | null => {
  const isRight = noGrad(() => scope(() => allFinite(handleOf(kind === 'non-negative' ? value.sqrt() : value))))
  return isRight ? null : `must hold finite ${kind === 'non-negative' ? 'numbers of at least 0' : 'numbers'}`
}

/** Runs `fn` outside capture, if a step is being captured. */
function outsideCapture<T>(fn: () => T): T {
  if (!currentRecorder()) return fn()
  native.captureOutside(true)
  try {
    return fn()
  } finally {
    native.captureOutside(false)
  }
}

/** Options of an optimizer by name, as stored in a checkpoint. */
export type OptimizerOptions = Readonly<Record<string, number | readonly number[]>>

/** Tensors of a parameter's state by name, and their allowed values; all finite. */
export type StateTensors = Readonly<Record<string, 'any' | 'non-negative'>>

/** Whether a value is an Optimizer of this copy of the package. */
export let isOptimizer: (value: unknown) => value is Optimizer

/** State and options for a checkpoint. Errors: OPTION, NON_FINITE if they could not be loaded again. */
export let checkpointOf: (optimizer: Optimizer, op: string) => { state: StateDict; options: OptimizerOptions }

/** Like stageState of a module, for `op`, with optional options; `what` names the state in errors. */
export let stageOptimizer: (
  optimizer: Optimizer,
  op: string,
  what: string,
  state: StateDict,
  options: unknown,
) => () => void

/** The state of one parameter: a step count and tensors of its shape. */
export interface ParameterState {
  /** Number of updates, in {@link ParameterUpdate} with the one to come. */
  step: number
  /** By the names of the optimizer's `stateTensors`. */
  tensors: Record<string, Tensor>
}

/** One parameter with its gradient and its state, on its device. */
export interface ParameterUpdate extends ParameterState {
  /** Is updated in place. */
  parameter: Parameter
  /** Of its shape. */
  grad: Tensor
}

/**
 * Base of the optimizers: the list of parameters, their state, and its dict.
 *
 * @example
 * ```ts
 * const model = new Linear(4, 1)
 * const optimizer: Optimizer = new AdamW(model.parameters())
 * model.forward(ones([8, 4])).sum().backward()
 * optimizer.step()
 * console.log(Object.keys(optimizer.stateDict()).slice(0, 3)) // → [ '0.step', '0.exp_avg', '0.exp_avg_sq' ]
 * ```
 */
export abstract class Optimizer {
  static {
    markCopy(Optimizer)
  }

  /** The parameters of the constructor, without duplicates. */
  readonly parameters: readonly Parameter[]
  readonly #states = new Map<Parameter, ParameterState>()
  readonly #op: string

  /** `op` is the operation in errors. Errors: OPTION for anything but Parameters, DISPOSED. */
  protected constructor(op: string, params: Iterable<Parameter>) {
    if (typeof params !== 'object' || params === null || typeof params[Symbol.iterator] !== 'function') {
      fail('OPTION', op, `params must be parameters, such as model.parameters(), got ${show(params)}`)
    }
    this.#op = op
    const distinct = new Set<Parameter>()
    for (const parameter of params) {
      const name = `parameter ${distinct.size}`
      if (!(parameter instanceof Parameter)) fail('OPTION', op, `${name} must be a Parameter, got ${show(parameter)}`)
      checkTensor(op, name, parameter)
      distinct.add(parameter)
    }
    this.parameters = Object.freeze([...distinct])
  }

  /** Always an UNSUPPORTED error: JSON would lose the state. */
  toJSON(): never {
    return refuseJson(this.constructor.name, 'write it to a file with saveCheckpoint')
  }

  /** Updates every parameter that has a gradient, in place. Errors: OPTION if an option such as `lr` is invalid. */
  step(): void {
    this.checkedOptions(`${this.#op}.step`, this)
    const due = this.parameters.flatMap((parameter) => (parameter.grad ? [{ parameter, grad: parameter.grad }] : []))
    const fresh = this.#makeStates(due.map(({ parameter }) => parameter)) // allocates before the first update
    try {
      this.#updateAll(due)
    } catch (error) {
      for (const parameter of fresh) if (this.#states.get(parameter)!.step === 0) this.#dropState(parameter)
      throw error
    }
  }

  #updateAll(due: readonly Pick<ParameterUpdate, 'parameter' | 'grad'>[]): void {
    const recorder = currentRecorder()
    for (const device of new Set(due.map(({ parameter }) => parameter.device))) {
      const here = due.filter(({ parameter }) => parameter.device === device)
      const updates = here.map(({ parameter, grad }): ParameterUpdate => {
        const state = this.#states.get(parameter)!
        const step = recorder ? this.#record(recorder, state) : state.step + 1
        return { parameter, grad, step, tensors: state.tensors }
      })
      this.update(updates)
      if (!recorder) for (const { parameter, step } of updates) this.#states.get(parameter)!.step = step
    }
  }

  /** In a captured step each replay counts, and this returns the index of the update in the step. */
  #record(recorder: Recorder, state: ParameterState): number {
    return recorder.add(
      () => this.replayRow(++state.step),
      () => {
        const { step } = state
        return () => {
          state.step = step
        }
      },
    )
  }

  /** @internal The numbers that a replay passes to the device for update number `step` of a parameter. */
  protected replayRow(_step: number): ReplayRow {
    return fail('UNSUPPORTED', `${this.constructor.name}.step`, 'this optimizer cannot be part of a captured step')
  }

  /** The state tensors of a parameter with these options. */
  protected abstract stateTensors(options: object): StateTensors

  /** The checked options of `source`, this optimizer or a checkpoint. Errors: OPTION. */
  protected checkedOptions(_op: string, _source: object): OptimizerOptions {
    return {}
  }

  /** Updates parameters of one device and their state tensors in place, all or none. */
  protected abstract update(updates: readonly ParameterUpdate[]): void

  /** Returns the parameters that had no state. */
  #makeStates(parameters: readonly Parameter[]): readonly Parameter[] {
    const fresh = parameters.filter((parameter) => !this.#states.has(parameter))
    if (fresh.length === 0) return fresh
    const names = Object.keys(this.stateTensors(this))
    const states = outsideCapture(() =>
      allOrNone(() =>
        fresh.map(({ shape, dtype, device }) => {
          const make = (name: string) => [name, keep(zeros(shape, { dtype, device }))] as const
          return { step: 0, tensors: Object.fromEntries(names.map(make)) }
        }),
      ),
    )
    for (const [i, parameter] of fresh.entries()) this.#states.set(parameter, states[i])
    return fresh
  }

  /** Frees all gradients: `grad` is null afterwards. */
  zeroGrad(): void {
    for (const parameter of this.parameters) parameter.grad = null
  }

  /** Copies of the state: `{i}.step` (f64, []) and the state tensors of parameter i, for all updated parameters. */
  stateDict(): StateDict {
    const entries = (parameter: Parameter, i: number): [string, Tensor][] => {
      const state = this.#states.get(parameter)
      if (!state) return []
      const tensors = Object.entries(state.tensors).map(([name, value]): [string, Tensor] => [
        `${i}.${name}`,
        value.clone(),
      ])
      return [[`${i}.step`, tensor(Float64Array.of(state.step), [])], ...tensors]
    }
    return scope(() => Object.fromEntries(this.parameters.flatMap(entries)))
  }

  /**
   * Copies the state. Checks everything first: all mismatches (an invalid step count, non-finite moments, another
   * shape) are one STATE_DICT error, and nothing changes.
   */
  loadStateDict(dict: StateDict): void {
    scope(() => this.#stage(`${this.constructor.name}.loadStateDict`, 'the state', dict, undefined)())
  }

  #checkpoint(op: string): { state: StateDict; options: OptimizerOptions } {
    const options = this.checkedOptions(op, this)
    const state = this.stateDict()
    const problems = this.#mismatches(op, state, options)
    if (problems.length > 0)
      fail('NON_FINITE', op, `the state of ${this.constructor.name} could not be loaded again:${listed(problems)}`)
    return { state, options }
  }

  #stage(op: string, what: string, dict: StateDict, saved: unknown): () => void {
    if (typeof dict !== 'object' || dict === null)
      fail('OPTION', op, `state must be an object of tensors, got ${show(dict)}`)
    const misfit = (problems: readonly string[]): never =>
      fail('STATE_DICT', op, `${what} does not fit, nothing was changed:${listed(problems)}`)
    const options = saved === undefined ? null : this.#restorable(op, saved, misfit)
    const problems = this.#mismatches(op, dict, options ?? this)
    if (problems.length > 0) misfit(problems)
    const names = Object.keys(this.stateTensors(options ?? this))
    const staged = this.#present(dict, ['step']).map(([i, parameter]) => {
      const copy = (name: string) => [name, copyLike(dict[`${i}.${name}`], parameter)] as const
      return { parameter, state: { step: dict[`${i}.step`].item(), tensors: Object.fromEntries(names.map(copy)) } }
    })
    return () => {
      this.dispose()
      for (const { parameter, state } of staged) {
        for (const value of Object.values(state.tensors)) keep(value)
        this.#states.set(parameter, state)
      }
      Object.assign(this, options)
    }
  }

  #restorable(op: string, saved: unknown, misfit: (problems: readonly string[]) => never): OptimizerOptions {
    if (typeof saved !== 'object' || saved === null) return misfit([`options must be an object, got ${show(saved)}`])
    let options: OptimizerOptions
    try {
      options = this.checkedOptions(op, saved)
    } catch (error) {
      return misfit([`option ${(error as Error).message.slice(op.length + 3)}`])
    }
    const unexpected = Object.keys(saved).filter((name) => !Object.hasOwn(options, name))
    return unexpected.length === 0 ? options : misfit(unexpected.map((name) => `unexpected: option ${showName(name)}`))
  }

  /** The mismatches of a state with the parameters and options. */
  #mismatches(op: string, dict: StateDict, options: object): string[] {
    const tensors = this.stateTensors(options)
    const names = ['step', ...Object.keys(tensors)]
    const known = new Set(this.parameters.flatMap((_, i) => names.map((name) => `${i}.${name}`)))
    const unexpected = Object.keys(dict).filter((key) => !known.has(key))
    return [
      ...unexpected.map((name) => `unexpected: ${showName(name)}`),
      ...this.#present(dict, names).flatMap(([i, { shape, dtype }]) =>
        names.flatMap((name) => {
          const key = `${i}.${name}`
          const problem = misfitOf(op, key, dict[key], name === 'step' ? stepMeta : { shape, dtype })
          if (problem !== null) return [problem]
          const value = dict[key]
          const numbers = name === 'step' ? countProblem(value) : numbersProblem(value, tensors[name])
          return numbers === null ? [] : [`${key} ${numbers}`]
        }),
      ),
    ]
  }

  /** The parameters with entries in a state, with their indices. */
  #present(dict: StateDict, names: readonly string[]): [number, Parameter][] {
    return [...this.parameters.entries()].filter(([i]) => names.some((name) => Object.hasOwn(dict, `${i}.${name}`)))
  }

  /** Frees the state, not the parameters. */
  dispose(): void {
    for (const parameter of this.#states.keys()) this.#dropState(parameter)
  }

  #dropState(parameter: Parameter): void {
    for (const value of Object.values(this.#states.get(parameter)!.tensors)) value.dispose()
    this.#states.delete(parameter)
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  static {
    isOptimizer = (value): value is Optimizer => typeof value === 'object' && value !== null && #states in value
    checkpointOf = (optimizer, op) => optimizer.#checkpoint(op)
    stageOptimizer = (optimizer, op, what, state, options) => optimizer.#stage(op, what, state, options)
  }
}
