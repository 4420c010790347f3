import { types } from 'node:util'
import { currentRecorder, refuseInAsync, refuseInCapture } from '../autograd/context.js'
import { allOrNone, keep, scope } from '../autograd/scope.js'
import { checkModule, type Module } from '../nn/module.js'
import type { Parameter } from '../nn/parameter.js'
import type { StateDict } from '../nn/state.js'
import { overwrite, valuesFor } from '../ops/copy.js'
import { checkFit, checkFunction, fail, listed, showName } from '../runtime/check.js'
import type { Device } from '../runtime/device.js'
import { markCopy, show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { replayRow } from '../runtime/native-ops.js'
import { checkValues, number, type OptionsOf, reader } from '../runtime/options.js'
import { refuseJson, uncloneable } from '../tensor/copies.js'
import { checkTensor, handleOf, type Tensor } from '../tensor/tensor.js'

const emaOptions = {
  /** What an update leaves of the average, from 0 to 1. Default 0.999. May be set between updates. */
  decay: number({ min: 0, max: 1, default: 0.999 }),
}

/** Options of {@link EMA}. */
export interface EMAOptions extends OptionsOf<typeof emaOptions> {}

const readOptions = reader(emaOptions)

/** A parameter, under its first name, and its average. */
interface Entry {
  readonly name: string
  readonly parameter: Parameter
  readonly average: Tensor
}

const ofOneThread = uncloneable('an EMA belongs to its thread: send the path of a file of saveCheckpoint()')

/** The parameters that have averages instead of their own values. */
const swapped = new WeakSet<Parameter>()

function refuseAverage(op: string, name: string, parameter: Parameter): void {
  if (swapped.has(parameter))
    fail('UNSUPPORTED', op, `${name} has the average of another EMA: call its swapOut() first`)
}

function refuseToSwap(op: string): void {
  refuseInCapture(op, 'it changes the parameters only once')
  refuseInAsync(op, 'an asynchronous call that fails could not give the parameters back: call it outside the call')
}

const copyOf = (tensor: Tensor): Tensor => keep(tensor.detach().clone())

/** Whether a value is an EMA of this copy of the package. */
export let isEMA: (value: unknown) => value is EMA
/** Averages and options for a checkpoint. Errors: UNSUPPORTED while the model has the averages. */
export let checkpointOfEMA: (ema: EMA, op: string) => { state: StateDict; options: object }
/** The parameters by the names of their averages. */
export let parametersOfEMA: (ema: EMA) => readonly (readonly [name: string, parameter: Parameter])[]
/** Checks averages and options; the returned function, which needs no memory, sets them. */
export let stageEMA: (ema: EMA, op: string, what: string, state: StateDict, options: unknown) => () => void

/**
 * The exponential moving average of a model's parameters (Polyak and Juditsky, 1992, as in torch's AveragedModel):
 * average = decay · average + (1 − decay) · parameter, from the parameters at construction on, by one call per device.
 * `use` evaluates with it. It lives until `dispose()`; a checkpoint keeps it (`ema`). Create it after `model.to(device)`.
 *
 * @example
 * ```ts
 * const model = new Linear(4, 1)
 * const optimizer = new AdamW(model.parameters())
 * using ema = new EMA(model, { decay: 0.9 })
 * for (let i = 0; i < 3; i++) {
 *   scope(() => model.forward(ones([8, 4])).square().mean().backward())
 *   optimizer.step()
 *   optimizer.zeroGrad()
 *   ema.update()
 * }
 * const loss = ema.use(() => noGrad(() => scope(() => model.forward(ones([8, 4])).square().mean().item())))
 * console.log(Number.isFinite(loss)) // → true
 * ```
 */
export class EMA {
  static {
    markCopy(EMA)
  }

  /** See {@link EMAOptions.decay}. */
  decay: number
  /** @internal */
  protected readonly uncloneable = ofOneThread
  readonly #entries: readonly Entry[]
  /** The values of the parameters while they have the averages. */
  #own: readonly Tensor[] | null = null

  /** Errors: OPTION, DISPOSED, UNSUPPORTED while a parameter has the average of another EMA. */
  constructor(model: Module, options?: EMAOptions) {
    const named = new Map<Parameter, string>()
    for (const [name, parameter] of checkModule('EMA', 'model', model).namedParameters())
      if (!named.has(parameter)) named.set(checkTensor('EMA', name, parameter) as Parameter, name)
    for (const [parameter, name] of named) refuseAverage('EMA', name, parameter)
    this.decay = readOptions('EMA', options).decay
    this.#entries = allOrNone(() =>
      [...named].map(([parameter, name]) => ({ name, parameter, average: copyOf(parameter) })),
    )
  }

  /**
   * Moves the averages towards the parameters, on their device and without waiting; also in a captured step. Errors:
   * OPTION if `decay` is invalid, DISPOSED, DEVICE, UNSUPPORTED while a parameter has an average, also of another EMA.
   */
  update(): void {
    const op = 'EMA.update'
    this.#expectOwn(op)
    const entries = this.#live(op)
    for (const { name, parameter } of entries) refuseAverage(op, name, parameter)
    const decay = this.#decay(op)
    const step = currentRecorder()?.add(
      'update',
      () => replayRow.ema({ step: 1, decay: this.#decay(op) }),
      () => () => {},
    )
    const devices = new Map<Device, Entry[]>()
    for (const entry of entries)
      devices.set(entry.average.device, [...(devices.get(entry.average.device) ?? []), entry])
    for (const together of devices.values())
      native.ema(
        together.map(({ parameter, average }) => {
          return { average: handleOf(average), p: handleOf(parameter), step: step ?? 1, decay }
        }),
      )
  }

  /**
   * Runs `fn` while the parameters have the averages, and restores their values afterwards, also after an exception; with
   * an async `fn` when its promise settles. Meanwhile the model needs the memory of one more copy of its parameters; do
   * not train it. Errors: those of `fn`, DISPOSED, DEVICE, UNSUPPORTED within another `use`, also of another EMA of one of the
   * parameters, in a captured step and in an asynchronous call.
   */
  use<T>(fn: () => T): T {
    checkFunction('EMA.use', 'fn', fn)
    this.swapIn()
    const own = this.#own
    const restore = () => {
      if (this.#own === own) this.swapOut() // else `fn` has done it
    }
    let settles = false
    try {
      const value = fn()
      if (!types.isPromise(value)) return value
      settles = true
      return value.finally(restore) as T
    } finally {
      if (!settles) restore()
    }
  }

  /** Gives the parameters the averages, until {@link EMA.swapOut}; `use` does both. Errors: as `use`. */
  swapIn(): void {
    const op = 'EMA.swapIn'
    refuseToSwap(op)
    this.#expectOwn(op)
    const entries = this.#live(op)
    for (const { name, parameter, average } of entries) checkTensor(op, name, parameter, average)
    for (const { name, parameter } of entries) refuseAverage(op, name, parameter)
    this.#own = allOrNone(() => entries.map(({ parameter }) => copyOf(parameter)))
    for (const { parameter, average } of entries) {
      swapped.add(parameter)
      overwrite(parameter, average)
    }
  }

  /** Gives the parameters their own values back. Errors: UNSUPPORTED without {@link EMA.swapIn}. */
  swapOut(): void {
    const op = 'EMA.swapOut'
    refuseToSwap(op)
    if (!this.#own) fail('UNSUPPORTED', op, 'the model has its own parameters: call swapIn() first')
    for (const [i, own] of this.#own.entries()) {
      const { parameter } = this.#entries[i]
      swapped.delete(parameter)
      if (!parameter.disposed) overwrite(parameter, own)
      own.dispose()
    }
    this.#own = null
  }

  /** Copies of the averages, under the names of `model.namedParameters()`. Errors: DISPOSED. */
  stateDict(): StateDict {
    const entries = this.#live('EMA.stateDict')
    return scope(() => Object.fromEntries(entries.map(({ name, average }) => [name, average.clone()])))
  }

  /** Copies averages in. All mismatches are one STATE_DICT error, and nothing changes. */
  loadStateDict(state: StateDict): void {
    scope(() => this.#stage('EMA.loadStateDict', 'the state', state)())
  }

  #stage(op: string, what: string, state: StateDict): () => void {
    if (typeof state !== 'object' || state === null)
      fail('OPTION', op, `state must be an object of tensors, got ${show(state)}`)
    this.#expectOwn(op)
    const entries = this.#live(op)
    const known = new Set(entries.map(({ name }) => name))
    const unexpected = Object.keys(state).filter((name) => !known.has(name))
    const problems = entries.flatMap(({ name, average: { shape, dtype } }) => {
      if (!Object.hasOwn(state, name)) return [`missing: ${showName(name)}`]
      try {
        const { device } = checkTensor(op, name, state[name])
        checkTensor(op, name, state[name], { shape, dtype, device })
        return []
      } catch (error) {
        return [(error as Error).message.slice(op.length + 3)]
      }
    })
    problems.push(...unexpected.map((name) => `unexpected: ${showName(name)}`))
    if (problems.length > 0) fail('STATE_DICT', op, `${what} does not fit, nothing was changed:${listed(problems)}`)
    const staged = valuesFor(entries.map(({ name, average }) => ({ source: state[name], target: average })))
    return () => {
      for (const [i, { average }] of entries.entries()) overwrite(average, staged[i])
    }
  }

  #decay(op: string): number {
    return checkValues(op, this, emaOptions).decay
  }

  #live(op: string): readonly Entry[] {
    for (const { name, parameter, average } of this.#entries) {
      checkTensor(op, `the average of ${name}`, average)
      checkTensor(op, name, parameter)
    }
    return this.#entries
  }

  #expectOwn(op: string): void {
    if (this.#own) fail('UNSUPPORTED', op, 'the model has the averages: call swapOut() first')
  }

  /** Always an UNSUPPORTED error: JSON would lose the averages. */
  toJSON(): never {
    return refuseJson('EMA', 'write it to a file with saveCheckpoint')
  }

  /** Frees the averages, not the model, which gets its own parameters back. A second call does nothing. */
  dispose(): void {
    if (this.#own) this.swapOut()
    for (const { average } of this.#entries) average.dispose()
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  static {
    isEMA = (value): value is EMA => typeof value === 'object' && value !== null && #entries in value
    checkpointOfEMA = (ema, op) => {
      ema.#expectOwn(op)
      return { options: { decay: ema.#decay(op) }, state: ema.stateDict() }
    }
    parametersOfEMA = (ema) => ema.#entries.map(({ name, parameter }) => [name, parameter])
    stageEMA = (ema, op, what, state, options) => {
      const read = checkFit(op, what, () => readOptions(op, options))
      const write = ema.#stage(op, what, state)
      return () => {
        write()
        ema.decay = read.decay
      }
    }
  }
}
