import type { HookHandle } from '../autograd/context.js'
import { isComputingAgain } from '../autograd/context.js'
import { keep, noGrad } from '../autograd/scope.js'
import { allReduce } from '../ops/all-reduce.js'
import { routerStatistics, statisticsSize } from '../ops/router-statistics.js'
import type { Routing } from '../ops/routing.js'
import { fail } from '../runtime/check.js'
import type { Device } from '../runtime/device.js'
import { dtypeCode } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { boolean, type OptionsOf, reader } from '../runtime/options.js'
import { groupHandle, type ProcessGroup } from '../runtime/process-group.js'
import { zeros } from '../tensor/create.js'
import { consumed } from '../tensor/handles.js'
import { handleOf, type Tensor } from '../tensor/tensor.js'
import { checkModule, type Module } from './module.js'
import { MoE } from './moe.js'
import { MoEResult } from './moe-result.js'
import { type RoutingStats, statsFrom } from './routing-stats.js'
import { sharedOut } from './shared-out.js'

const monitorOptions = {
  /** Also counts forwards of layers in evaluation mode. Default false. */
  evaluation: boolean({ default: false }),
}

/** Options of {@link MoEMonitor}. */
export interface MoEMonitorOptions extends OptionsOf<typeof monitorOptions> {}

const readOptions = reader(monitorOptions)

/** What one layer did since the last reset: counts are sums, shares and means are over all its tokens. */
export interface LayerStats extends RoutingStats {
  /** The path of the layer in the model, as in its state dict; '' for the model itself. */
  name: string
  /** How many forwards. */
  forwards: number
  /** How many tokens, padding excluded. */
  tokens: number
}

/** The sums of one layer. */
class Watched {
  /** Whether only some ranks have the layer: its tokens are those of all. */
  readonly #isPart: boolean
  readonly #name: string
  readonly #moe: MoE
  readonly #hook: HookHandle
  /** f64, see {@link routerStatistics}. */
  #sums: Tensor
  #K = 0

  constructor(name: string, moe: MoE, { evaluation, isPart }: { evaluation: boolean; isPart: boolean }) {
    this.#isPart = isPart
    this.#name = name
    this.#moe = moe
    this.#sums = this.#zeros()
    this.#hook = moe.registerForwardHook((_module, _args, result) => {
      if (isComputingAgain()) return
      if (result instanceof MoEResult && (moe.training || evaluation)) this.#add(result.routing)
    })
  }

  #zeros(): Tensor {
    const { device } = this.#moe.gate.toGates.weight
    return keep(zeros([statisticsSize(this.#moe.numExperts)], { dtype: 'f64', device }))
  }

  #add(routing: Routing): void {
    this.#K = routing.expertIndex.shape[2]
    if (this.#sums.device !== routing.gate.device) this.#follow(routing.gate.device)
    const sums = consumed(routerStatistics(routing), (handle) => native.convert(handle, dtypeCode('f64')))
    try {
      native.addInPlace(handleOf(this.#sums), sums)
    } finally {
      native.release(sums)
    }
  }

  /** The layer has moved. */
  #follow(device: Device): void {
    const sums = keep(this.#sums.to(device))
    this.#sums.dispose()
    this.#sums = sums
  }

  report(group: ProcessGroup | null): LayerStats {
    using all = group && !this.#isPart ? noGrad(() => allReduce(this.#sums, group)) : null
    const sums = (all ?? this.#sums).dataSync()
    const [forwards, tokens] = sums
    return { name: this.#name, forwards, tokens, ...statsFrom(sums, this.#moe.numExperts, this.#K) }
  }

  reset(): void {
    this.#sums.copyFrom(new Float64Array(this.#sums.size)) // in place: a captured step adds to it
  }

  dispose(): void {
    this.#hook.remove()
    this.#sums.dispose()
  }
}

/**
 * Watches the routers of all {@link MoE} layers in a model, in training mode. A forward adds to sums on the device of the
 * layer, which takes no memory and does not wait; `report` reads them.
 *
 * @example
 * ```ts
 * const block = new SparseMoEBlock(new MoE({ dim: 32, numExperts: 4 }))
 * using monitor = new MoEMonitor(block)
 * for (let step = 0; step < 3; step++) scope(() => block.forward(randn([2, 16, 32])))
 * const [{ name, forwards, tokens, firstChoicePerExpert }] = monitor.report()
 * console.log(name, forwards, tokens, firstChoicePerExpert.length) // → moe 3 96 4
 * monitor.reset()
 * ```
 */
export class MoEMonitor {
  readonly #layers: Watched[] = []
  #disposed = false

  /** Errors: OPTION, also for a model without a MoE. */
  constructor(model: Module, options?: MoEMonitorOptions) {
    const op = 'MoEMonitor'
    const { evaluation } = readOptions(op, options)
    const found = new Map<MoE, string>()
    for (const [name, module] of checkModule(op, 'model', model).namedModules())
      if (module instanceof MoE && !found.has(module)) found.set(module, name)
    if (found.size === 0) fail('OPTION', op, 'model must contain a MoE')
    try {
      const parts = new Set(sharedOut(model).flatMap(({ module }) => [...module.modules()]))
      for (const [moe, name] of found) this.#layers.push(new Watched(name, moe, { evaluation, isPart: parts.has(moe) }))
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  /**
   * What each layer did since the last reset, in the order of the model. Waits for the device. With a `group`, whose ranks all
   * call it, what it did on all of them together; a layer inside of experts that ranks share out has their tokens anyway.
   * Errors: DISPOSED; those of `allReduce`.
   */
  report(group?: ProcessGroup): LayerStats[] {
    this.#checkLive('report')
    if (group !== undefined) groupHandle('MoEMonitor.report', group)
    return this.#layers.map((layer) => layer.report(group ?? null))
  }

  /** Starts anew. Errors: DISPOSED. */
  reset(): void {
    this.#checkLive('reset')
    for (const layer of this.#layers) layer.reset()
  }

  /** Stops watching, and frees the sums. A second call does nothing. */
  dispose(): void {
    this.#disposed = true
    for (const layer of this.#layers) layer.dispose()
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  #checkLive(method: string): void {
    if (this.#disposed) fail('DISPOSED', `MoEMonitor.${method}`, 'the monitor was disposed')
  }
}
