import { currentRecorder, onFailure, refuseToWait } from '../autograd/context.js'
import type { Recorder } from '../autograd/recorder.js'
import { allOrNone, keep, noGrad, scope } from '../autograd/scope.js'
import type { Parameter } from '../nn/parameter.js'
import type { StateDict } from '../nn/state.js'
import { copyLike } from '../ops/copy.js'
import { fail, listed, showName } from '../runtime/check.js'
import { markCopy, show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import type { ReplayRow } from '../runtime/native-ops.js'
import { refuseJson } from '../tensor/copies.js'
import { tensor, zeros } from '../tensor/create.js'
import { share } from '../tensor/handles.js'
import { allFinite, finiteNorm } from '../tensor/norm.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import {
  misfits,
  type OptimizerParameters,
  type ParameterGroup,
  prefixOf,
  readGroups,
  restoredGroups,
  savedGroups,
  shareOptions,
} from './groups.js'
import { isOwn, sharedUpdatesOf } from './shared-updates.js'
import { Skips } from './skips.js'
import { problemOf, type StateTensors, shapeOf } from './state.js'
import { normInStep, readStepOptions, type StepOptions } from './step-options.js'

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

/** A parameter that a step updates. */
type Due<O> = Pick<ParameterUpdate<O>, 'parameter' | 'grad' | 'options'> & { group: ParameterGroup<O> }

const onEachDevice = <O>(due: readonly Due<O>[]): Due<O>[][] =>
  [...new Set(due.map(({ parameter }) => parameter.device))].map((device) =>
    due.filter(({ parameter }) => parameter.device === device),
  )

const mapped = <T, V>(values: Readonly<Record<string, T>>, f: (name: string, value: T) => V): Record<string, V> =>
  Object.fromEntries(Object.entries(values).map(([name, value]) => [name, f(name, value)]))

/** Whether a value is an Optimizer of this copy of the package. */
export let isOptimizer: (value: unknown) => value is Optimizer

/** State and options for a checkpoint. Errors: OPTION, NON_FINITE if they could not be loaded again. */
export let checkpointOf: (optimizer: Optimizer, op: string) => { state: StateDict; options: unknown }

/** Like stageState of a module, for `op`, with optional options; `what` names the state in errors. */
export let stageOptimizer: (
  optimizer: Optimizer,
  op: string,
  what: string,
  state: StateDict,
  options: unknown,
) => () => void

/** The state of one parameter: a step count and tensors. */
export interface ParameterState {
  /** Number of updates, in {@link ParameterUpdate} with the one to come. */
  step: number
  /** By the names of the optimizer's `stateTensors`. */
  tensors: Record<string, Tensor>
}

/** One parameter with its gradient and its state, on its device. */
export interface ParameterUpdate<O = object> extends ParameterState {
  /** Is updated in place. */
  parameter: Parameter
  /** Of its shape. */
  grad: Tensor
  /** The checked options of its group. */
  options: O
}

/**
 * Base of the optimizers: the groups of parameters with their options, the state, and its dict. Every option is also a
 * property of the optimizer, such as `optimizer.lr`: setting it sets that of all groups; reading it while groups differ
 * is an OPTION error.
 *
 * @example
 * ```ts
 * const model = new Linear(4, 1)
 * const optimizer: Optimizer = new AdamW([{ params: [model.weight], lr: 0.1 }, { params: [model.bias!] }], { lr: 0.2 })
 * model.forward(ones([8, 4])).sum().backward()
 * optimizer.step()
 * console.log(Object.keys(optimizer.stateDict()).slice(0, 3)) // → [ '0.step', '0.exp_avg', '0.exp_avg_sq' ]
 * ```
 */
export abstract class Optimizer<O extends object = object> {
  static {
    markCopy(Optimizer)
  }

  /** Those of the constructor, in its order; of a list of parameters one. */
  readonly groups: readonly ParameterGroup<O>[]
  /** The parameters of all groups in order, without duplicates. */
  readonly parameters: readonly Parameter[]
  readonly #states = new Map<Parameter, ParameterState>()
  readonly #op: string
  readonly #skips = new Skips()

  /**
   * `op` is the operation in errors, `options` are checked ones, for what groups do not override. Errors: OPTION for
   * anything but Parameters or groups of them, for a parameter in two groups, and for their options; DISPOSED.
   */
  protected constructor(op: string, params: OptimizerParameters<Partial<O>>, options: O) {
    this.#op = op
    const check = this.#check
    this.groups = Object.freeze(readGroups(op, params, options, check)) as readonly ParameterGroup<O>[]
    this.parameters = Object.freeze(this.groups.flatMap((group) => group.params))
    shareOptions(op, this, this.groups, Object.keys(options))
  }

  readonly #check = (op: string, source: object, prefix: string): O => this.checkedOptions(op, source, prefix)

  /** Always an UNSUPPORTED error: JSON would lose the state. */
  toJSON(): never {
    return refuseJson(this.constructor.name, 'write it to a file with saveCheckpoint')
  }

  /**
   * Updates every parameter that has a gradient, in place; returns whether it did (see {@link StepOptions.onNonFinite}).
   * Errors: OPTION if an option such as `lr` is invalid; NON_FINITE; SHAPE, DTYPE, DEVICE for `norm`; UNSUPPORTED for 'throw'
   * in a captured step, for 'skip' there beside another step of this optimizer, and for both with `shardOptimizer` unless there
   * is a `norm`.
   */
  step(options?: StepOptions): boolean {
    const op = `${this.#op}.step`
    const due = this.#due(op)
    const { onNonFinite, norm } = readStepOptions(op, options, due[0]?.parameter.device)
    const shared = sharedUpdatesOf(this.parameters)
    if (shared.length > 0 && onNonFinite !== 'propagate' && norm === undefined)
      fail(
        'UNSUPPORTED',
        op,
        `onNonFinite: '${onNonFinite}' with shardOptimizer needs norm, of DataParallel.clipGradNorm`,
      )
    const recorder = currentRecorder()
    const decides = onNonFinite === 'skip' && recorder !== null
    if (recorder) recorder.noteStep(op, this, decides)
    else this.#skips.settle()
    if (onNonFinite !== 'propagate' && !decides && !this.#areFinite(op, due, norm)) {
      if (onNonFinite === 'throw') fail('NON_FINITE', op, 'all gradients must be finite')
      this.#skips.count++
      return false
    }
    const fresh = this.#makeStates(due) // allocates before the first update
    try {
      this.#updateAll(due, decides ? this.#decide(op, recorder, due, norm) : null)
    } catch (error) {
      for (const parameter of fresh) if (this.#states.get(parameter)!.step === 0) this.#dropState(parameter)
      throw error
    }
    noGrad(() => {
      for (const updates of shared) updates.share()
    })
    return true
  }

  /**
   * Number of steps that `onNonFinite: 'skip'` has skipped since the optimizer was made. Reading it never waits: on a GPU
   * the latest replay of a captured step counts once the next one begins, or a step or `stateDict` has waited for it.
   */
  get skipped(): number {
    return this.#skips.count
  }

  /** The parameters that have a gradient. */
  #due(op: string): Due<O>[] {
    return this.groups.flatMap((group, i) => {
      const prefix = prefixOf(i, this.groups.length)
      const options = this.#check(op, group, prefix)
      return group.params.flatMap((parameter, j) => {
        const { grad } = parameter
        return grad ? [{ parameter, grad: checkTensor(op, `${prefix}params[${j}].grad`, grad), options, group }] : []
      })
    })
  }

  #areFinite(op: string, due: readonly Due<O>[], norm: number | Tensor | undefined): boolean {
    if (typeof norm === 'number') return Number.isFinite(norm)
    refuseToWait(op, 'onNonFinite waits for the device')
    if (norm) return Number.isFinite(norm.item())
    return onEachDevice(due).every((here) => allFinite(here.map(({ grad }) => handleOf(grad))))
  }

  /** The norm by which each replay of a captured step decides whether it updates the parameters. */
  #decide(op: string, recorder: Recorder, due: readonly Due<O>[], given: number | Tensor | undefined): Tensor | null {
    if (due.length === 0) return null
    const handle =
      given === undefined
        ? finiteNorm(
            op,
            due.map(({ grad }) => handleOf(grad)),
          )
        : share(handleOf(normInStep(op, given)))
    const norm = keep(wrap(handle, { shape: [], dtype: 'f64', device: due[0].parameter.device }))
    const states = due.map(({ parameter }) => this.#states.get(parameter)!)
    recorder.decide(this.#skips.decision(norm, states))
    return norm
  }

  #updateAll(due: readonly Due<O>[], norm: Tensor | null): void {
    const recorder = currentRecorder()
    for (const here of onEachDevice(due)) {
      const updates = here.map(({ parameter, grad, options, group }): ParameterUpdate<O> => {
        const state = this.#states.get(parameter)!
        const step = recorder ? this.#record(recorder, state, group) : state.step + 1
        return { parameter, grad, step, tensors: state.tensors, options }
      })
      this.update(updates, norm)
      if (!recorder) for (const { parameter, step } of updates) this.#count(parameter, step)
    }
  }

  #count(parameter: Parameter, step: number): void {
    const state = this.#states.get(parameter)!
    const before = state.step
    state.step = step
    onFailure(() => {
      state.step = before
      if (before === 0 && this.#states.get(parameter) === state) this.#dropState(parameter)
    })
  }

  /** In a captured step each replay counts, and this returns the index of the update in the step. */
  #record(recorder: Recorder, state: ParameterState, group: ParameterGroup<O>): number {
    const prefix = prefixOf(this.groups.indexOf(group), this.groups.length)
    return recorder.add(
      'update',
      () => this.replayRow(++state.step, this.#check(`${this.#op}.step`, group, prefix)),
      () => {
        const { step } = state
        return () => {
          state.step = step
        }
      },
    )
  }

  /** @internal The numbers that a replay passes to the device for update number `step` of a parameter. */
  protected replayRow(_step: number, _options: O): ReplayRow {
    return fail('UNSUPPORTED', `${this.constructor.name}.step`, 'this optimizer cannot be part of a captured step')
  }

  /** The state tensors of a parameter of this shape, in a group with these options. */
  protected abstract stateTensors(options: O, shape: readonly number[]): StateTensors

  /** The checked options of `source`: a group, or one of a checkpoint. Errors: OPTION, with `prefix` before the name. */
  protected abstract checkedOptions(op: string, source: object, prefix: string): O

  /**
   * Updates parameters of one device and their state tensors in place, all or none. With a `norm`, a tensor f64 [] on the
   * device, that is not finite, none; only a captured step has one.
   */
  protected abstract update(updates: readonly ParameterUpdate<O>[], norm: Tensor | null): void

  /** Returns the parameters that had no state. */
  #makeStates(due: readonly Due<O>[]): readonly Parameter[] {
    const fresh = due.filter(({ parameter }) => !this.#states.has(parameter))
    if (fresh.length === 0) return []
    const states = outsideCapture(() =>
      allOrNone(() =>
        fresh.map(({ parameter: { shape, dtype, device }, options }) => ({
          step: 0,
          tensors: mapped(this.stateTensors(options, shape), (_, tensor) =>
            keep(zeros(shapeOf(tensor, shape), { dtype, device })),
          ),
        })),
      ),
    )
    for (const [i, { parameter }] of fresh.entries()) this.#states.set(parameter, states[i])
    return fresh.map(({ parameter }) => parameter)
  }

  /** Frees all gradients: `grad` is null afterwards. */
  zeroGrad(): void {
    for (const parameter of this.parameters) parameter.grad = null
  }

  /** Copies of the state: `{i}.step` (f64, []) and the state tensors of parameter i, for all updated parameters. */
  stateDict(): StateDict {
    this.#skips.settle()
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
   * Copies the state, that of parameters which this process updates. Checks everything first: all mismatches (an invalid step
   * count, non-finite moments, another shape) are one STATE_DICT error, and nothing changes.
   */
  loadStateDict(dict: StateDict): void {
    scope(() => this.#stage(`${this.constructor.name}.loadStateDict`, 'the state', dict, undefined)())
  }

  #checkpoint(op: string): { state: StateDict; options: unknown } {
    const groups = this.groups.map(({ params }, i) => ({
      params,
      options: this.#check(op, this.groups[i], prefixOf(i, this.groups.length)),
    }))
    const state = this.stateDict()
    const problems = this.#mismatches(op, state, this.#tensors(groups.map(({ options }) => options)))
    if (problems.length > 0)
      fail('NON_FINITE', op, `the state of ${this.constructor.name} could not be loaded again:${listed(problems)}`)
    return { state, options: savedGroups(groups) }
  }

  #stage(op: string, what: string, dict: StateDict, saved: unknown): () => void {
    if (typeof dict !== 'object' || dict === null)
      fail('OPTION', op, `state must be an object of tensors, got ${show(dict)}`)
    const misfit = (problems: readonly string[]): never => misfits(op, what, problems)
    const options = saved === undefined ? null : restoredGroups(op, saved, this.groups, this.#check, misfit)
    const tensors = this.#tensors((options as O[]) ?? this.groups)
    const problems = this.#mismatches(op, dict, tensors)
    if (problems.length > 0) misfit(problems)
    const staged = [...this.parameters.entries()].flatMap(([i, parameter]) => {
      if (!Object.hasOwn(dict, `${i}.step`) || !isOwn(parameter)) return []
      const copy = (name: string) => copyLike(dict[`${i}.${name}`], parameter)
      return [{ parameter, state: { step: dict[`${i}.step`].item(), tensors: mapped(tensors[i], copy) } }]
    })
    return () => {
      this.dispose()
      for (const { parameter, state } of staged) {
        for (const value of Object.values(state.tensors)) keep(value)
        this.#states.set(parameter, state)
      }
      for (const [i, own] of options?.entries() ?? []) Object.assign(this.groups[i], own)
    }
  }

  /** The state tensors of each parameter if its group has these options. */
  #tensors(options: readonly O[]): StateTensors[] {
    return this.groups.flatMap(({ params }, i) => params.map(({ shape }) => this.stateTensors(options[i], shape)))
  }

  /** The mismatches of a state with the parameters, whose state tensors are `tensors`. */
  #mismatches(op: string, dict: StateDict, tensors: readonly StateTensors[]): string[] {
    const keys = tensors.map((own, i) =>
      ['step', ...Object.keys(own)].map((name) => [`${i}.${name}`, own[name]] as const),
    )
    const known = new Set<string>(keys.flat().map(([key]) => key))
    const unexpected = Object.keys(dict).filter((key) => !known.has(key))
    const problems = keys.flatMap((own, i) => {
      if (!own.some(([key]) => Object.hasOwn(dict, key))) return []
      return own.map(([key, kind]) => problemOf(op, key, dict[key], this.parameters[i], kind))
    })
    return [...unexpected.map((name) => `unexpected: ${showName(name)}`), ...problems.filter((text) => text !== null)]
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
