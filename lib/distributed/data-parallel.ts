import { registerAfterGrad } from '../autograd/backward.js'
import type { HookHandle } from '../autograd/context.js'
import { inBatchPart } from '../autograd/random.js'
import { noGrad, scope } from '../autograd/scope.js'
import { checkModule, type Module } from '../nn/module.js'
import type { Parameter } from '../nn/parameter.js'
import { RoutedExperts } from '../nn/routed-experts.js'
import { SoftExperts } from '../nn/soft-experts.js'
import { allGather } from '../ops/all-gather.js'
import { allReduce } from '../ops/all-reduce.js'
import { add, mul } from '../ops/binary.js'
import { broadcast } from '../ops/broadcast.js'
import { overwrite } from '../ops/copy.js'
import { reshape } from '../ops/reshape.js'
import { concat, slice } from '../ops/strided.js'
import { sqrt, square } from '../ops/unary.js'
import { checkFunction, checkNumber } from '../runtime/check.js'
import { dtypeSize } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { integer, type OptionsOf, oneOf, reader, type ValuesOf } from '../runtime/options.js'
import { groupHandle, type ProcessGroup } from '../runtime/process-group.js'
import { tensor, zeros } from '../tensor/create.js'
import { handleList } from '../tensor/norm.js'
import { handleOf, type Tensor, wrap } from '../tensor/tensor.js'

const declared = {
  /** Gradients travel together up to this size. It changes no bits. Default 25 MiB. */
  bucketBytes: integer({ min: 1, default: 25 * 2 ** 20 }),
  /**
   * 'mean': the gradients are those of the mean of all ranks' losses, as of one process whose loss is a mean over the batches
   * of all. 'sum': of their sum. Default 'mean'.
   */
  reduction: oneOf(['mean', 'sum'], { default: 'mean' }),
}
const readOptions = reader(declared)

/** Options of {@link dataParallel}. */
export type DataParallelOptions = OptionsOf<typeof declared>

/** Tensors that some ranks have together; null for one rank. */
interface Together<T> {
  readonly group: ProcessGroup | null
  readonly tensors: readonly T[]
}

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
  readonly #buckets: readonly Together<Parameter>[]
  /** The parameters of experts that ranks share out, by the number of ranks that hold the same. */
  readonly #shared: ReadonlyMap<Parameter, number>
  readonly #scale: number
  readonly #hooks: readonly HookHandle[]
  #paused = 0

  /** @internal */
  constructor(model: Module, group: ProcessGroup, { bucketBytes, reduction }: ValuesOf<[typeof declared]>) {
    this.group = group
    this.#scale = reduction === 'mean' ? 1 / group.size : 1
    const parts = partsOf(model, group)
    const states = new Set(Array.from(model.stateEntries(), ({ tensor }) => tensor))
    const parameters = model.parameters()
    for (const tensor of new Set<Tensor>([...parameters, ...states])) {
      const among = parts.has(tensor) ? parts.get(tensor)! : group
      if (among && among.size > 1) noGrad(() => scope(() => overwrite(tensor, broadcast(tensor, among, { root: 0 }))))
    }
    const trained = parameters.filter(({ requiresGrad }) => requiresGrad)
    this.#buckets = bucketsOf(
      trained.map((tensor) => ({ group: parts.has(tensor) ? parts.get(tensor)! : group, tensors: [tensor] })),
      bucketBytes,
    )
    const held = (parameter: Parameter) => parts.get(parameter)?.size ?? 1
    this.#shared = new Map(trained.flatMap((parameter) => (parts.has(parameter) ? [[parameter, held(parameter)]] : [])))
    const sync = () => this.#sync()
    this.#hooks = trained.map((parameter) => registerAfterGrad(parameter, sync))
  }

  /**
   * Calls `fn`, whose backwards add to the gradients of this rank alone; the next backward outside adds up what has gathered.
   * Returns what `fn` does; if that is a promise, until it is settled.
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
        const all = this.#buckets.flatMap(({ tensors }) => tensors).filter(({ grad }) => grad !== null)
        const squareOf = (parameters: readonly Parameter[]): Tensor<'f64'> => {
          if (parameters.length === 0) return zeros([], { dtype: 'f64' })
          const grads = handleList(
            op,
            parameters.map(({ grad }) => handleOf(grad!)),
          )
          return square(wrap(native.norm(grads, 1), { shape: [], dtype: 'f64', device: parameters[0].device }))
        }
        let total = squareOf(all.filter((parameter) => !this.#shared.has(parameter)))
        if (this.#shared.size > 0) {
          const own = [...new Set(this.#shared.values())].map((ranks) =>
            mul(squareOf(all.filter((parameter) => this.#shared.get(parameter) === ranks)), 1 / ranks),
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

  #sync(): void {
    if (this.#paused > 0) return
    noGrad(() => {
      for (const { group, tensors } of this.#buckets) scope(() => this.#add(group, tensors))
    })
  }

  #add(group: ProcessGroup | null, parameters: readonly Parameter[]): void {
    const own = parameters.map(({ grad, shape, size, dtype, device }) =>
      reshape(grad ?? zeros(shape, { dtype, device }), [size]),
    )
    const flat = own.length === 1 ? own[0] : concat(own, 0)
    const sum = group && group.size > 1 ? allReduce(flat, group) : flat
    const scaled = this.#scale === 1 ? sum : mul(sum, this.#scale)
    let at = 0
    for (const parameter of parameters) {
      const part = reshape(slice(scaled, 0, at, at + parameter.size), parameter.shape)
      at += parameter.size
      if (parameter.grad) overwrite(parameter.grad, part)
      else parameter.grad = part
    }
  }
}

/** By the tensors of experts that ranks share out: the ranks that hold the same, null for one. */
function partsOf(model: Module, group: ProcessGroup): Map<Tensor, ProcessGroup | null> {
  const shared = [...model.modules()].flatMap((module) => {
    const share = module instanceof RoutedExperts || module instanceof SoftExperts ? module.share : null
    return share ? [{ module, held: [share.first, share.count] }] : []
  })
  const parts = new Map<Tensor, ProcessGroup | null>()
  if (shared.length === 0 || group.size === 1) return parts
  const held = Int32Array.from(shared.flatMap(({ held }) => held))
  using mine = tensor(held, [1, held.length])
  using all = allGather(mine, group)
  const numbers = all.dataSync()
  const made = new Map<string, ProcessGroup | null>()
  for (const [i, { module }] of shared.entries()) {
    const keys = Array.from({ length: group.size }, (_, r) => {
      const at = r * held.length + 2 * i
      return `${numbers[at]} ${numbers[at + 1]}`
    })
    for (const key of new Set(keys)) {
      const ranks = keys.flatMap((other, r) => (other === key ? [r] : []))
      const list = ranks.join()
      if (!made.has(list)) made.set(list, ranks.length === 1 ? null : group.newGroup(ranks))
      if (!ranks.includes(group.rank)) continue
      for (const { tensor } of module.stateEntries()) parts.set(tensor, made.get(list)!)
      for (const parameter of module.parameters()) parts.set(parameter, made.get(list)!)
    }
  }
  return parts
}

/** Neighbors of one group, dtype and device together, up to a size. */
function bucketsOf(list: readonly Together<Parameter>[], bucketBytes: number): Together<Parameter>[] {
  const buckets: { group: ProcessGroup | null; tensors: Parameter[]; bytes: number }[] = []
  for (const { group, tensors } of list) {
    const [parameter] = tensors
    const { dtype, device, size } = parameter
    const bytes = size * dtypeSize(dtype)
    const fits = buckets.find(
      (bucket) =>
        bucket.group === group &&
        bucket.tensors[0].dtype === dtype &&
        bucket.tensors[0].device === device &&
        bucket.bytes + bytes <= bucketBytes,
    )
    if (fits) {
      fits.tensors.push(parameter)
      fits.bytes += bytes
    } else buckets.push({ group, tensors: [parameter], bytes })
  }
  return buckets
}
