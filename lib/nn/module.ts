import { types } from 'node:util'
import { type AsyncOptions, callAsync, withoutSignal } from '../autograd/async.js'
import type { HookHandle } from '../autograd/context.js'
import { currentObserver, refuseToWait } from '../autograd/context.js'
import { scope } from '../autograd/scope.js'
import { checkBoolean, checkFunction, fail, isPlain } from '../runtime/check.js'
import { checkDevice, type Device, deviceIndex } from '../runtime/device.js'
import { checkDType, type WeightFormat, weightFormats } from '../runtime/dtype.js'
import { MoeError, markCopy, show } from '../runtime/errors.js'
import { refuseJson } from '../tensor/copies.js'
import { zeros } from '../tensor/create.js'
import { checkTensor, moveToDevice, storeAs, type Tensor } from '../tensor/tensor.js'
import { type BackwardHook, type ForwardHook, type ForwardPreHook, hooksOf } from './hooks.js'
import { Parameter } from './parameter.js'
import {
  entriesOf,
  entryShape,
  type LoadOptions,
  type LoadReport,
  readEntry,
  type StateDict,
  type StateEntry,
  stageState,
  stateOf,
} from './state.js'

/** The modules around the children of `module`. One that contains itself has no last parameter: an OPTION error. */
function around(module: Module, above: readonly Module[]): Module[] {
  if (above.includes(module)) fail('OPTION', module.constructor.name, 'the module contains itself')
  return [...above, module]
}

/** A property, or what arrays and plain objects in it hold; `above` are those that `value` is in. */
function* childrenIn(
  name: string,
  value: unknown,
  above: readonly unknown[] = [],
): Iterable<[name: string, child: Parameter | Module]> {
  if (typeof value !== 'object' || value === null || above.includes(value)) return
  if (value instanceof Parameter || value instanceof Module) yield [name, value]
  else {
    const path = [...above, value]
    for (const [key, entry] of namedIn(value))
      if (typeof entry === 'object') yield* childrenIn(`${name}.${key}`, entry, path)
  }
}

/** The entries of an array, of a plain object and of a Map that have a name. */
function namedIn(value: object): Iterable<[name: string | number, entry: unknown]> {
  if (Array.isArray(value)) return value.entries()
  if (types.isMap(value))
    return [...Map.prototype.entries.call(value)].filter(([key]) => typeof key === 'string' || typeof key === 'number')
  return isPlain(value) ? Object.entries(value) : []
}

/**
 * Base class of everything with parameters. Finds properties that are Parameters or Modules, and those in arrays, plain
 * objects and Maps, even nested ones. A Map needs keys that are strings or numbers. It finds none in Sets, other classes and
 * private `#names`. A subclass needs a constructor and `forward`.
 *
 * @example
 * ```ts
 * class Net extends Module {
 *   hidden = new Linear(8, 32)
 *   out = new Linear(32, 1)
 *   forward(x: Tensor): Tensor {
 *     return this.out.forward(this.hidden.forward(x).relu())
 *   }
 * }
 * console.log([...new Net().namedParameters()].map(([name]) => name).join()) // → hidden.weight,hidden.bias,out.weight,out.bias
 * ```
 */
export abstract class Module {
  static {
    markCopy(Module)
  }

  #training = true

  /** Training mode, at first; see {@link Module.train}. */
  get training(): boolean {
    currentObserver()?.mode(this, this.#training)
    return this.#training
  }

  /** Children under the names of their properties; those of arrays, objects and Maps as `name.0`, `name.1`, `name.key`, … */
  protected *children(): Iterable<[name: string, child: Parameter | Module]> {
    for (const [key, value] of Object.entries(this)) yield* childrenIn(this.stateName(key), value)
  }

  /** The name in state dicts of a property. */
  protected stateName(property: string): string {
    return property
  }

  /**
   * All parameters of this module and those below it, under each of their names: those of the state dict, but stacked
   * ones are one, such as `moe.experts.w1`, beside `moe.gate.to_gates.weight` and `moe_prenorm.gamma` of a SparseMoEBlock.
   * `above` are the modules that this one was reached through: a module that contains itself is an OPTION error.
   */
  *namedParameters(above: readonly Module[] = []): Iterable<[string, Parameter]> {
    const path = around(this, above)
    for (const [name, child] of this.children()) {
      if (child instanceof Parameter) yield [name, child]
      else for (const [inner, parameter] of child.namedParameters(path)) yield [`${name}.${inner}`, parameter]
    }
  }

  /** All parameters of this module and those below it, in a fixed order; one that has several names once. */
  parameters(): Parameter[] {
    return [...new Set(Array.from(this.namedParameters(), ([, parameter]) => parameter))]
  }

  /** This module and all below it, as often as they have names; `above` as for {@link Module.namedParameters}. */
  *modules(above: readonly Module[] = []): Iterable<Module> {
    for (const [, module] of this.namedModules(above)) yield module
  }

  /** This module under the name '', and all below it under each of their names; `above` as for {@link modules}. */
  *namedModules(above: readonly Module[] = []): Iterable<[string, Module]> {
    const path = around(this, above)
    yield ['', this]
    for (const [name, child] of this.children()) {
      if (!(child instanceof Module)) continue
      for (const [inner, module] of child.namedModules(path)) yield [inner === '' ? name : `${name}.${inner}`, module]
    }
  }

  /**
   * Everything that a state dict holds, buffers included; `above` as for {@link Module.namedParameters}. A module with
   * stacked parameters or buffers overrides it.
   */
  *stateEntries(above: readonly Module[] = []): Iterable<StateEntry> {
    const path = around(this, above)
    for (const [name, child] of this.children()) {
      if (child instanceof Parameter) yield { name, tensor: child }
      else for (const entry of child.stateEntries(path)) yield { ...entry, name: `${name}.${entry.name}` }
    }
  }

  /**
   * How names in a state dict of the whole model begin that this process has not: those of experts of other ranks. Loading
   * passes over them.
   */
  *stateElsewhere(): Iterable<string> {
    for (const [name, child] of this.children())
      if (child instanceof Module) for (const begin of child.stateElsewhere()) yield `${name}.${begin}`
  }

  /**
   * Copies of all parameters and buffers under the names of the PyTorch package. They live in the surrounding scope, or
   * until disposed. Errors: OPTION for two of one name, DISPOSED.
   *
   * @example
   * ```ts
   * console.log(Object.keys(new Linear(8, 4).stateDict())) // → [ 'weight', 'bias' ]
   * ```
   */
  stateDict(): StateDict {
    return stateOf(`${this.constructor.name}.stateDict`, this)
  }

  /** Copies of the gradients under the names of the state dict; zeros if there is none. */
  gradDict(): StateDict {
    const op = `${this.constructor.name}.gradDict`
    const entries = entriesOf(op, this).filter((entry) => entry.tensor instanceof Parameter)
    const gradient = (entry: StateEntry): Tensor => {
      const { grad, dtype, device } = entry.tensor
      return grad ? readEntry(op, entry, grad) : zeros(entryShape(entry), { dtype, device })
    }
    return scope(() => Object.fromEntries(entries.map((entry) => [entry.name, gradient(entry)])))
  }

  /**
   * Copies values in, converting between floating-point types. Missing, unknown, misshapen and mistyped entries are
   * one STATE_DICT error that lists them (the first of many), and nothing is changed; with `strict: false` missing and
   * unknown names are only reported. Tensors may be on any device.
   *
   * @example
   * ```ts
   * const layer = new Linear(8, 4)
   * layer.loadStateDict(new Linear(8, 4, { dtype: 'f64' }).stateDict())
   * console.log(layer.loadStateDict({ scale: ones([4]) }, { strict: false }).unexpected) // → [ 'scale' ]
   * ```
   */
  loadStateDict(state: StateDict, options?: LoadOptions): LoadReport {
    const op = `${this.constructor.name}.loadStateDict`
    return scope(() => stageState(this, op, 'the state', state, options)())
  }

  /** Training mode (default) or evaluation, for this module and all below. */
  train(mode = true): this {
    checkBoolean('Module.train', 'mode', mode)
    for (const module of [...this.modules()]) module.#training = mode
    return this
  }

  /** Evaluation mode: `train(false)`. */
  eval(): this {
    return this.train(false)
  }

  /** Always an UNSUPPORTED error: JSON would lose the parameters. */
  toJSON(): never {
    return refuseJson(this.constructor.name, 'write stateDict() to a file with saveSafetensors')
  }

  /**
   * Moves parameters, buffers and gradients to a device, in place. Create the optimizer after that: its state stays where
   * it is. Errors: DEVICE, BACKEND_UNAVAILABLE, OUT_OF_MEMORY; nothing has been moved then.
   */
  to(device: Device): this {
    const target = checkDevice(`${this.constructor.name}.to`, device)
    const number = deviceIndex(`${this.constructor.name}.to`, target)
    moveToDevice(
      [...this.#tensors()].filter((tensor) => tensor.device !== target),
      target,
      number,
    )
    return this
  }

  /**
   * Parameters of this module, without those of modules below, that only {@link linear}, {@link ops.groupedGemm} and
   * {@link ops.expertFfn} read: {@link Module.freeze} may store them in fewer bits.
   */
  protected gemmWeights(): readonly Parameter[] {
    return []
  }

  /**
   * Ends the training of all parameters: they have no gradients and get none. With a format, 'bf16', 'f16' or 'int8', the weights of linear layers and
   * experts are stored in it as well, rounded to nearest, which is all that there is of them then; embeddings, routers,
   * norms and biases stay as they are. State dicts have them in that format. 'f32' stores them wide again; a parameter in
   * f32 trains again with `requiresGrad = true`.
   * Errors: DTYPE for another format, or a layer in f64; DISPOSED; UNSUPPORTED in a captured step or an asynchronous call;
   * OUT_OF_MEMORY. Nothing has changed then.
   *
   * @example
   * ```ts
   * const layer = new Linear(64, 32).freeze('bf16')
   * console.log(layer.weight.dtype, layer.bias?.dtype, layer.forward(ones([2, 64])).dtype) // → bf16 f32 f32
   * ```
   */
  freeze(format?: WeightFormat): this {
    const op = `${this.constructor.name}.freeze`
    refuseToWait(op, 'it replaces parameters')
    const parameters = this.parameters()
    for (const [name, parameter] of this.namedParameters()) checkTensor(op, name, parameter)
    if (format !== undefined) {
      checkDType(op, format, weightFormats)
      const stored = this.#onlyWeights()
      for (const { dtype } of stored)
        if (dtype === 'f64') fail('DTYPE', op, `weights in f64 cannot be stored in ${format}`)
      storeAs(
        stored.filter(({ dtype }) => dtype !== format),
        format,
      )
    }
    for (const parameter of parameters) {
      parameter.grad = null
      parameter.requiresGrad = false
    }
    return this
  }

  /** What every module that has it as its own calls one of its weights. */
  #onlyWeights(): Parameter[] {
    const [weights, others] = [new Set<Parameter>(), new Set<Parameter>()]
    for (const module of this.modules()) {
      const own = new Set(module.gemmWeights())
      for (const [, child] of module.children())
        if (child instanceof Parameter) (own.has(child) ? weights : others).add(child)
    }
    return [...weights].filter((parameter) => !others.has(parameter))
  }

  /** Buffers that move and are freed with this module, but are no part of its state. */
  protected transientBuffers(): readonly Tensor[] {
    return []
  }

  #tensors(): Set<Tensor> {
    const ofState = Array.from(this.stateEntries(), ({ tensor }) => tensor)
    return new Set([...ofState, ...Array.from(this.modules(), (module) => module.transientBuffers()).flat()])
  }

  /**
   * `forward` on a thread of the addon, while the event loop goes on, after the asynchronous calls before
   * ({@link trainStepAsync} has the rules). Takes the inputs of `forward`; a `signal` is one more option of the last, and
   * interrupts a forward that has begun. Errors: those of `forward`; UNSUPPORTED if it waits for values.
   *
   * @example
   * ```ts
   * const moe = new MoE({ dim: 16, numExperts: 4 }).eval()
   * const { outputs } = await noGrad(() => moe.forwardAsync(ones([1, 8, 16]), { signal: AbortSignal.timeout(60_000) }))
   * console.log(outputs.shape) // → [ 1, 8, 16 ]
   * ```
   */
  async forwardAsync<A extends unknown[], R>(
    this: { forward(...inputs: A): R },
    ...inputs: A | [...A, AsyncOptions] | [A[0], AsyncOptions]
  ): Promise<R> {
    const op = `${this.constructor.name}.forwardAsync`
    const { given, signal } = withoutSignal(op, inputs)
    return callAsync(op, () => this.forward(...(given as A)), signal)
  }

  /** Frees all gradients: `grad` is null afterwards. */
  zeroGrad(): void {
    for (const parameter of this.parameters()) parameter.grad = null
  }

  /** Frees parameters, buffers and gradients. */
  dispose(): void {
    for (const tensor of this.#tensors()) tensor.dispose()
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  /**
   * Called as fn(module, args) before `forward`; an array that it returns replaces the arguments.
   *
   * @example
   * ```ts
   * const layer = new Linear(4, 2)
   * layer.registerForwardPreHook((_, [x]) => [(x as Tensor).mul(0)])
   * console.log(layer.forward(ones([1, 4])).sub(layer.bias!).abs().sum().item()) // → 0
   * ```
   */
  registerForwardPreHook(fn: ForwardPreHook): HookHandle {
    checkFunction('Module.registerForwardPreHook', 'fn', fn)
    return hooksOf(this).add('pre', fn)
  }

  /**
   * Called as fn(module, args, result) after `forward`; anything but undefined that it returns replaces the result.
   *
   * @example
   * ```ts
   * const layer = new Linear(4, 2)
   * const hook = layer.registerForwardHook((module, _, y) => console.log(module.constructor.name, y.shape))
   * layer.forward(ones([1, 4])) // → Linear [ 1, 2 ]
   * hook.remove()
   * ```
   */
  registerForwardHook(fn: ForwardHook): HookHandle {
    checkFunction('Module.registerForwardHook', 'fn', fn)
    return hooksOf(this).add('post', fn)
  }

  /**
   * Called as fn(module, gradInput, gradOutput) when the gradients of the module's tensor arguments are known: one
   * entry for each tensor argument and each tensor of the result, null where nothing flows. An array that it returns
   * replaces gradInput.
   *
   * @example
   * ```ts
   * const layer = new Linear(4, 2)
   * layer.registerFullBackwardHook((_, gradInput, gradOutput) => {
   *   console.log(gradInput[0]?.shape, gradOutput[0]?.dataSync()) // → [ 1, 4 ] Float32Array(2) [ 1, 1 ]
   * })
   * layer.forward(ones([1, 4], { requiresGrad: true })).sum().backward()
   * ```
   */
  registerFullBackwardHook(fn: BackwardHook): HookHandle {
    checkFunction('Module.registerFullBackwardHook', 'fn', fn)
    return hooksOf(this).add('backward', fn)
  }
}

/** A module that `value` must be. */
export function checkModule(op: string, name: string, value: unknown): Module {
  if (value instanceof Module) return value
  throw new MoeError('OPTION', op, `${name} must be a Module, got ${show(value)}`)
}
