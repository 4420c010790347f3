import { type LeafGradients, registerExchange } from '../autograd/backward.js'
import type { HookHandle } from '../autograd/context.js'
import { inBatchPart } from '../autograd/random.js'
import { noGrad, scope } from '../autograd/scope.js'
import { TopNGating } from '../nn/gating.js'
import { checkModule, type Module } from '../nn/module.js'
import type { Parameter } from '../nn/parameter.js'
import { allReduce } from '../ops/all-reduce.js'
import { add, mul } from '../ops/binary.js'
import { broadcast } from '../ops/broadcast.js'
import { overwrite } from '../ops/copy.js'
import { sqrt, square } from '../ops/unary.js'
import { shareUpdates } from '../optim/shared-updates.js'
import { checkFunction, checkNumber, fail } from '../runtime/check.js'
import { native } from '../runtime/native.js'
import { boolean, integer, type OptionsOf, oneOf, reader, type ValuesOf } from '../runtime/options.js'
import { groupHandle, type ProcessGroup } from '../runtime/process-group.js'
import { zeros } from '../tensor/create.js'
import { handleList } from '../tensor/norm.js'
import { handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { type Bucket, bucketsOf, partsOf } from './buckets.js'

const declared = {
  /** Gradients travel together up to this size. It changes no bits. Default 25 MiB. */
  bucketBytes: integer({ min: 1, default: 25 * 2 ** 20 }),
  /**
   * 'mean': the gradients are those of the mean of all ranks' losses, as of one process whose loss is a mean over the batches
   * of all. 'sum': of their sum. Default 'mean'.
   */
  reduction: oneOf(['mean', 'sum'], { default: 'mean' }),
  /**
   * Each parameter has one rank that updates it and holds its gradient and the state of its optimizer (ZeRO, stage 1 with
   * gradients); after a step all ranks get it. A step with `onNonFinite` other than 'propagate' needs the norm of
   * {@link DataParallel.clipGradNorm}. Default false: every rank updates all.
   */
  shardOptimizer: boolean({ default: false }),
}
const readOptions = reader(declared)

/** Options of {@link dataParallel}. */
export type DataParallelOptions = OptionsOf<typeof declared>

/**
 * Trains a model that every rank of a group has: after each backward the gradients are those of all ranks' losses, and the same
 * on every rank. At once, all parameters and buffers become those of rank 0. Experts that ranks share out (`processGroup` of
 * {@link MoE}, this group or a part of it) are added up over the ranks that hold the same ones.
 *
 * All ranks call `backward` as often, each for a loss that reaches the model. A parameter without a gradient counts as zeros.
 * Sums are in the order of the ranks, so their bits depend neither on buckets nor on threads nor on the library. It works in
 * {@link trainStepAsync} and {@link captureStep} too. Errors: OPTION; those of the collectives, also in `backward`.
 *
 * @example
 * ```ts
 * const group = initProcessGroup()
 * const model = new Linear(4, 1)
 * using parallel = dataParallel(model, group)
 * model.forward(randn([8, 4])).square().mean().backward() // its gradients are now those of all ranks
 * console.log(parallel.group.size) // → 1
 * group.destroy()
 * ```
 */
export function dataParallel(model: Module, group: ProcessGroup, options: DataParallelOptions = {}): DataParallel {
  const op = 'dataParallel'
  checkModule(op, 'model', model)
  groupHandle(op, group)
  return new DataParallel(model, group, readOptions(op, options))
}

/**
 * Made by {@link dataParallel}. It works until it is disposed.
 *
 * @example
 * ```ts
 * const group = initProcessGroup()
 * const parallel: DataParallel = dataParallel(new Linear(4, 1), group)
 * parallel.dispose() // the gradients of a backward are those of its rank alone again
 * group.destroy()
 * ```
 */
export class DataParallel {
  /** All ranks. */
  readonly group: ProcessGroup
  readonly #buckets: readonly Bucket[]
  /** By parameter whose gradient not all ranks have: how many do. */
  readonly #held: ReadonlyMap<Parameter, number>
  readonly #scale: number
  /** Parameters whose `grad` is of this rank alone. */
  readonly #gathered = new Set<Parameter>()
  readonly #hooks: readonly HookHandle[]
  #paused = 0

  /** @internal */
  constructor(
    model: Module,
    group: ProcessGroup,
    { bucketBytes, reduction, shardOptimizer }: ValuesOf<[typeof declared]>,
  ) {
    this.group = group
    this.#scale = reduction === 'mean' ? 1 / group.size : 1
    const parts = partsOf(model, group)
    const groupOf = (tensor: Tensor) => (parts.has(tensor) ? parts.get(tensor)! : group)
    const states = new Set(Array.from(model.stateEntries(), ({ tensor }) => tensor))
    const parameters = model.parameters()
    for (const tensor of new Set<Tensor>([...parameters, ...states])) {
      const among = groupOf(tensor)
      if (among && among.size > 1) noGrad(() => scope(() => overwrite(tensor, broadcast(tensor, among, { root: 0 }))))
    }
    const trained = parameters.filter(({ requiresGrad }) => requiresGrad)
    const sharded = shardOptimizer && group.size > 1
    this.#buckets = bucketsOf(trained, groupOf, { bucketBytes, sharded })
    const split = sharded ? trained : trained.filter((parameter) => parts.has(parameter))
    this.#held = new Map(split.map((parameter) => [parameter, sharded ? 1 : (groupOf(parameter)?.size ?? 1)]))
    const exchange = (gradients: LeafGradients) => this.#exchange(gradients)
    this.#hooks = [
      ...shareLoads(model, groupOf),
      ...trained.map((parameter) => registerExchange(parameter, exchange)),
      ...(sharded ? this.#buckets.flatMap((bucket) => bucket.parameters.map((p) => shareUpdates(p, bucket))) : []),
    ]
  }

  /**
   * Calls `fn`, whose backwards add to the gradients of this rank alone; the next backward outside adds up what has gathered.
   * Returns what `fn` does; if that is a promise, until it is settled. Errors: UNSUPPORTED in a backward if there are gradients
   * of an exchange, with which those of one rank would mix.
   *
   * @example
   * ```ts
   * const group = initProcessGroup()
   * const model = new Linear(4, 1)
   * using parallel = dataParallel(model, group)
   * const backward = () => model.forward(randn([8, 4])).square().mean().backward()
   * parallel.noSync(backward)
   * backward() // two batches, one exchange
   * group.destroy()
   * ```
   */
  noSync<T>(fn: () => T): T {
    checkFunction('DataParallel.noSync', 'fn', fn)
    this.#paused++
    let isPromise = false
    const resume = () => {
      this.#paused--
    }
    try {
      const value = fn()
      isPromise = value instanceof Promise
      return isPromise ? ((value as Promise<unknown>).finally(resume) as T) : value
    } finally {
      if (!isPromise) resume()
    }
  }

  /**
   * Calls `fn`, in which routers sample what one process would for a batch of the sequences of all ranks, one rank after the
   * other, and use the numbers of this rank. All ranks have as many sequences and the same state of the generator. Dropout,
   * jitter and the groups of two levels sample for each rank alone.
   *
   * @example
   * ```ts
   * const group = initProcessGroup()
   * const moe = new MoE({ dim: 16, numExperts: 4 })
   * using parallel = dataParallel(moe, group)
   * const { outputs } = parallel.asOneBatch(() => moe.forward(randn([2, 8, 16])))
   * console.log(outputs.shape) // → [ 2, 8, 16 ]
   * group.destroy()
   * ```
   */
  asOneBatch<T>(fn: () => T): T {
    checkFunction('DataParallel.asOneBatch', 'fn', fn)
    const { rank: part, size: parts } = this.group
    return parts === 1 ? fn() : inBatchPart({ part, parts }, fn)
  }

  /**
   * {@link clipGradNorm} of the whole model, with the experts of all ranks, each once: scales the gradients in place so that
   * their joint 2-norm is at most `maxNorm`, and returns the original norm, f64 [], the same on every rank, which all call it.
   * It does not wait, so that a captured step can clip. If the norm is not finite, the gradients do not change. Errors: OPTION;
   * those of the collectives.
   *
   * @example
   * ```ts
   * const group = initProcessGroup()
   * const model = new Linear(4, 1)
   * using parallel = dataParallel(model, group)
   * model.forward(full([8, 4], 100)).sum().backward()
   * parallel.clipGradNorm(1)
   * console.log(parallel.clipGradNorm(1).item().toFixed(3)) // → 1.000
   * group.destroy()
   * ```
   */
  clipGradNorm(maxNorm: number): Tensor<'f64'> {
    const op = 'DataParallel.clipGradNorm'
    checkNumber(op, 'maxNorm', maxNorm, 0)
    return noGrad(() =>
      scope(() => {
        const all = this.#buckets.flatMap(({ parameters }) => parameters).filter(({ grad }) => grad !== null)
        const squareOf = (parameters: readonly Parameter[]): Tensor<'f64'> => {
          if (parameters.length === 0) return zeros([], { dtype: 'f64' })
          const grads = handleList(
            op,
            parameters.map(({ grad }) => handleOf(grad!)),
          )
          return square(wrap(native.norm(grads, 1), { shape: [], dtype: 'f64', device: parameters[0].device }))
        }
        let total = squareOf(all.filter((parameter) => !this.#held.has(parameter)))
        if (this.#held.size > 0) {
          const own = [...new Set(this.#held.values())].map((ranks) =>
            mul(squareOf(all.filter((parameter) => this.#held.get(parameter) === ranks)), 1 / ranks),
          )
          total = add(
            total,
            allReduce(
              own.reduce((a, b) => add(a, b)),
              this.group,
            ),
          )
        }
        const norm = sqrt(total)
        const grads = handleList(
          op,
          all.map(({ grad }) => handleOf(grad!)),
        )
        if (all.length > 0) native.clipNorm(grads, handleOf(norm), maxNorm)
        return norm
      }),
    )
  }

  /** Ends it: the gradients of a backward are those of its rank alone again. */
  dispose(): void {
    for (const hook of this.#hooks) hook.remove()
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  #exchange(gradients: LeafGradients): void {
    const parameters = this.#buckets.flatMap(({ parameters }) => parameters)
    if (this.#paused > 0) {
      if (parameters.some((parameter) => parameter.grad && !this.#gathered.has(parameter)))
        fail('UNSUPPORTED', 'DataParallel.noSync', 'there are gradients of all ranks: call zeroGrad before it')
      for (const parameter of parameters) this.#gathered.add(parameter)
      return
    }
    noGrad(() => {
      for (const bucket of this.#buckets) bucket.addUp(gradients, this.#gathered, this.#scale)
      for (const parameter of this.#gathered) parameter.grad = null
    })
    this.#gathered.clear()
  }
}

/** The routers of a model even out the loads of all ranks of a group, until the handles are removed. */
function shareLoads(model: Module, groupOf: (bias: Tensor) => ProcessGroup | null): HookHandle[] {
  return [...model.modules()].flatMap((gate) => {
    if (!(gate instanceof TopNGating) || !gate.expertBias) return []
    const before = gate.loadGroup
    gate.loadGroup = groupOf(gate.expertBias)
    return {
      remove: () => {
        gate.loadGroup = before
      },
    }
  })
}
