import { fail } from '../check.js'
import { tensor, zeros } from '../create.js'
import { show } from '../errors.js'
import { native } from '../native.js'
import type { StateDict } from '../nn/module.js'
import { Parameter } from '../nn/parameter.js'
import { copyLike } from '../ops/copy.js'
import { currentRecorder, type StepNumbers } from '../recorder.js'
import { allOrNone, keep, scope } from '../scope.js'
import { checkTensor, type Tensor } from '../tensor.js'

const stepMeta = { shape: [], dtype: 'f64' } as const

/** Runs `fn` now, also while a step is captured: what it makes is no part of the step. */
function aside<T>(fn: () => T): T {
  if (!currentRecorder()) return fn()
  native.captureAside(true)
  try {
    return fn()
  } finally {
    native.captureAside(false)
  }
}

/** For checkpoints, as stageState of a module. */
export let stageOptimizer: (optimizer: Optimizer, dict: StateDict) => () => void

/** What one parameter's updates leave behind: a step count and tensors of the parameter's shape. */
export interface ParameterState {
  /** Updates done. */
  step: number
  /** By the names of the optimizer's `stateNames`. */
  tensors: Record<string, Tensor>
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
  /** Those that the constructor got, each once. */
  readonly parameters: readonly Parameter[]
  readonly #states = new Map<Parameter, ParameterState>()
  /** Names of the tensors in a parameter's state. */
  protected abstract readonly stateNames: readonly string[]

  /** Errors: OPTION for anything but Parameters, DISPOSED. */
  protected constructor(op: string, params: Iterable<Parameter>) {
    if (typeof params !== 'object' || params === null || typeof params[Symbol.iterator] !== 'function') {
      fail('OPTION', op, `params must be parameters, such as model.parameters(), got ${show(params)}`)
    }
    const distinct = new Set<Parameter>()
    for (const parameter of params) {
      const name = `parameter ${distinct.size}`
      if (!(parameter instanceof Parameter)) fail('OPTION', op, `${name} must be a Parameter, got ${show(parameter)}`)
      checkTensor(op, name, parameter)
      distinct.add(parameter)
    }
    this.parameters = Object.freeze([...distinct])
  }

  /** Updates every parameter that has a gradient, in place. Errors: OPTION where a setting such as `lr` was made invalid. */
  step(): void {
    const due = this.parameters.flatMap((parameter) => (parameter.grad ? [{ parameter, grad: parameter.grad }] : []))
    this.#makeStates(due.map(({ parameter }) => parameter)) // where memory ends, no parameter has been updated
    for (const { parameter, grad } of due) {
      const state = this.#states.get(parameter)!
      const step = this.#count(state)
      this.update(parameter, grad, { step, tensors: state.tensors })
    }
  }

  /** Counts an update. In a captured step every replay counts, and the place of the update stands for the count. */
  #count(state: ParameterState): number {
    const recorder = currentRecorder()
    if (!recorder) return ++state.step
    return recorder.add(
      () => this.stepNumbers(++state.step),
      () => {
        const { step } = state
        return () => {
          state.step = step
        }
      },
    )
  }

  /** @internal What a replay of a captured step tells the device about update number `step` of a parameter. */
  protected stepNumbers(_step: number): StepNumbers {
    return fail('UNSUPPORTED', `${this.constructor.name}.step`, 'this optimizer cannot be part of a captured step')
  }

  /** Changes one parameter and its state in place. */
  protected abstract update(parameter: Parameter, grad: Tensor, state: ParameterState): void

  #makeStates(parameters: readonly Parameter[]): void {
    const fresh = parameters.filter((parameter) => !this.#states.has(parameter))
    if (fresh.length === 0) return
    const states = aside(() =>
      allOrNone(() =>
        fresh.map(({ shape, dtype, device }) => {
          const make = (name: string) => [name, keep(zeros(shape, { dtype, device }))] as const
          return { step: 0, tensors: Object.fromEntries(this.stateNames.map(make)) }
        }),
      ),
    )
    for (const [i, parameter] of fresh.entries()) this.#states.set(parameter, states[i])
  }

  /** Frees all gradients: `grad` is null afterwards. */
  zeroGrad(): void {
    for (const parameter of this.parameters) parameter.grad = null
  }

  /** Copies of the state: `{i}.step` (f64, []) and the tensors of parameter i, for parameters that have been updated. */
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

  /** Takes copies. Everything is checked first: entries that do not fit are one STATE_DICT error, and nothing is changed. */
  loadStateDict(dict: StateDict): void {
    scope(() => this.#stage(dict)())
  }

  /** As stageState of a module. */
  #stage(dict: StateDict): () => void {
    const op = `${this.constructor.name}.loadStateDict`
    if (typeof dict !== 'object' || dict === null)
      fail('OPTION', op, `state must be an object of tensors, got ${show(dict)}`)
    const names = ['step', ...this.stateNames]
    const problems: string[] = []
    const known = new Set(this.parameters.flatMap((_, i) => names.map((name) => `${i}.${name}`)))
    for (const key of Object.keys(dict)) if (!known.has(key)) problems.push(`unexpected: ${key}`)
    const present = this.parameters.flatMap((parameter, i) =>
      names.some((name) => Object.hasOwn(dict, `${i}.${name}`)) ? [{ parameter, i }] : [],
    )
    for (const { parameter, i } of present) {
      for (const name of names) {
        const { shape, dtype } = name === 'step' ? stepMeta : parameter
        try {
          const value = checkTensor(op, `${i}.${name}`, dict[`${i}.${name}`])
          checkTensor(op, `${i}.${name}`, value, { shape, dtype, device: value.device })
        } catch (error) {
          problems.push((error as Error).message)
        }
      }
    }
    if (problems.length > 0)
      fail('STATE_DICT', op, `the state does not fit, nothing was changed:\n  ${problems.join('\n  ')}`)
    const staged = present.map(({ parameter, i }) => {
      const copy = (name: string) => [name, copyLike(dict[`${i}.${name}`], parameter)] as const
      const tensors = Object.fromEntries(this.stateNames.map(copy))
      return { parameter, state: { step: dict[`${i}.step`].item(), tensors } }
    })
    return () => {
      this.dispose()
      for (const { parameter, state } of staged) {
        for (const value of Object.values(state.tensors)) keep(value)
        this.#states.set(parameter, state)
      }
    }
  }

  /** Frees the state, not the parameters. */
  dispose(): void {
    for (const { tensors } of this.#states.values()) for (const value of Object.values(tensors)) value.dispose()
    this.#states.clear()
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  static {
    stageOptimizer = (optimizer, dict) => optimizer.#stage(dict)
  }
}
