import { types } from 'node:util'
import { currentScope } from '../autograd/context.js'
import { scope, tensorsIn, withoutScope } from '../autograd/scope.js'
import type { StateDict } from '../nn/state.js'
import { checkFit, checkInteger, fail } from '../runtime/check.js'
import { markCopy, show } from '../runtime/errors.js'
import { boolean, integer, type OptionsOf, reader, unchecked } from '../runtime/options.js'
import { turnIfDue } from '../runtime/turn.js'
import type { Tensor } from '../tensor/tensor.js'
import { type BatchDataset, type Dataset, type Source, type Stream, sourceOf } from './dataset.js'
import { orderOf, shuffledWindows } from './order.js'
import { isPromise, Waiting } from './waiting.js'

const loaderOptions = {
  /** Examples of a batch. */
  batchSize: integer({ min: 1 }),
  /** A new order of the examples in each epoch; of a stream within windows of `window` examples. Default false. */
  shuffle: boolean({ default: false }),
  /** Of the orders; different ones in each epoch. Default 0. */
  seed: integer({ min: 0, default: 0 }),
  /** Leaves out a last batch of fewer examples. Default false. */
  dropLast: boolean({ default: false }),
  /** Batches that `for await` makes ahead, while the caller works. Default 2. */
  prefetch: integer({ min: 0, default: 2 }),
  /** Examples of a stream that are shuffled among each other, and are in memory at once. Default 10000. */
  window: integer({ min: 1, default: 10000 }),
}

const collateOption = { collate: unchecked<(examples: readonly unknown[]) => unknown>() }

const readOptions = reader(loaderOptions, collateOption)

/** Options of {@link DataLoader}. */
export interface DataLoaderOptions<T, B> extends OptionsOf<typeof loaderOptions> {
  /**
   * Makes a batch of examples. The loader frees its new tensors when it gives the next batch, and others that this makes
   * at once, unless it passes them to {@link keep}. Default: an array.
   */
  collate?: (examples: readonly T[]) => B | Promise<B>
}

/** The position of a {@link DataLoader}, plain JSON, and what it is a position in. */
export interface DataLoaderState {
  /** Number of finished epochs. */
  readonly epoch: number
  /** Batches of this epoch that have been given. */
  readonly batch: number
  /** That of the orders. */
  readonly seed: number
  /** See the options, as below. */
  readonly batchSize: number
  /** The same. */
  readonly shuffle: boolean
  /** The same. */
  readonly dropLast: boolean
  /** Examples of the dataset; null of a stream. */
  readonly length: number | null
  /** As above. */
  readonly window: number
}

/** Whether a value is a DataLoader of this copy of the package. */
export let isDataLoader: (value: unknown) => value is DataLoader<unknown, unknown>

/** For a checkpoint: there are no tensors. */
export const checkpointOfLoader = (
  loader: DataLoader<unknown, unknown>,
): { state: StateDict; options: DataLoaderState } => ({ state: {}, options: loader.toJSON() })

/** Checks a position for a loader; the returned function, which cannot fail, sets it. */
export let stageLoader: (
  loader: DataLoader<unknown, unknown>,
  op: string,
  what: string,
  dict: StateDict,
  state: unknown,
) => () => void

/**
 * Batches of examples, epoch after epoch, with a position that {@link saveCheckpoint} keeps (`loader`): a run that
 * resumes gets the batches that it would have got. A loop gives the rest of the epoch; the next begins a new one.
 *
 * The source is an array, a {@link Dataset}, a {@link BatchDataset} such as {@link tensorDataset}, or a function that
 * begins a {@link Stream}. Resuming skips the examples of a dataset without reading them, and reads those of a stream.
 * `for await` works with all sources and makes batches ahead; `for` with those that need no promise.
 *
 * @example
 * ```ts
 * const loader = new DataLoader([1, 2, 3, 4, 5], { batchSize: 2, shuffle: true, seed: 1 })
 * const sizes: number[] = []
 * for await (const batch of loader) sizes.push(batch.length)
 * console.log(sizes.join(), loader.epoch, loader.batch) // → 2,2,1 1 0
 * ```
 */
export class DataLoader<T, B = T[]> {
  static {
    markCopy(DataLoader)
  }

  readonly #source: Source<T, B>
  readonly #options: ReturnType<typeof readOptions>
  #seed: number
  #epoch = 0
  #batch = 0
  #isRunning = false
  /** The tensors of the batch that the caller has. */
  #given: readonly Tensor[] = []

  /** Of a dataset of batches. Errors: OPTION. */
  constructor(source: BatchDataset<B>, options: Omit<DataLoaderOptions<never, B>, 'collate'>)
  /** Of examples. Errors: OPTION. */
  constructor(source: readonly T[] | Dataset<T> | Stream<T>, options: DataLoaderOptions<T, B>)
  constructor(source: unknown, options: DataLoaderOptions<T, B>) {
    const op = 'DataLoader'
    this.#source = sourceOf(op, source)
    this.#options = readOptions(op, options)
    this.#seed = this.#options.seed
    const { collate } = this.#options
    if (collate === undefined) return
    if (typeof collate !== 'function') fail('OPTION', op, `collate must be a function, got ${show(collate)}`)
    if (this.#source.kind === 'batches') fail('OPTION', op, 'collate is for sources of examples, not of batches')
  }

  /** Number of finished epochs. */
  get epoch(): number {
    return this.#epoch
  }

  /** Batches of this epoch that have been given. */
  get batch(): number {
    return this.#batch
  }

  /** Batches of an epoch, or null of a stream. */
  get batches(): number | null {
    const { batchSize, dropLast } = this.#options
    const { length } = this.#source
    return length === null ? null : dropLast ? Math.floor(length / batchSize) : Math.ceil(length / batchSize)
  }

  /** Sets the position. Errors: OPTION, UNSUPPORTED within a loop. */
  moveTo(epoch: number, batch = 0): void {
    const op = 'DataLoader.moveTo'
    this.#expectIdle(op)
    this.#staged(op, { ...this.toJSON(), epoch, batch })()
  }

  /** The argument of {@link DataLoader.setState}. */
  toJSON(): DataLoaderState {
    const { batchSize, shuffle, dropLast, window } = this.#options
    const { length } = this.#source
    return { epoch: this.#epoch, batch: this.#batch, seed: this.#seed, batchSize, shuffle, dropLast, length, window }
  }

  /**
   * Continues from a state of {@link DataLoader.toJSON} of a loader with the same options, besides the seed, and as many
   * examples. Errors: OPTION, UNSUPPORTED within a loop; nothing changes then.
   */
  setState(state: DataLoaderState): void {
    const op = 'DataLoader.setState'
    this.#expectIdle(op)
    this.#staged(op, state)()
  }

  #expectIdle(op: string): void {
    if (this.#isRunning) fail('UNSUPPORTED', op, 'a loop over this loader is running')
  }

  #staged(op: string, state: unknown): () => void {
    if (typeof state !== 'object' || state === null)
      fail('OPTION', op, `state must be the object of toJSON(), got ${show(state)}`)
    const { epoch, batch, seed, ...same } = state as DataLoaderState
    checkInteger(op, 'epoch', epoch, 0, 2 ** 31 - 1)
    checkInteger(op, 'batch', batch, 0, this.batches ?? Number.MAX_SAFE_INTEGER)
    checkInteger(op, 'seed', seed, 0)
    const { epoch: _e, batch: _b, seed: _s, ...own } = this.toJSON()
    for (const [name, value] of Object.entries(own)) {
      const given = (same as Record<string, unknown>)[name]
      if (given !== value)
        fail(
          'OPTION',
          op,
          `${name === 'length' ? 'the number of examples' : name} must be ${value}, got ${show(given)}`,
        )
    }
    return () => {
      this.#epoch = epoch
      this.#batch = batch
      this.#seed = seed
    }
  }

  /** The rest of the epoch, without promises. Errors: UNSUPPORTED for streams and sources that return promises. */
  *[Symbol.iterator](): Generator<B, void, undefined> {
    const source = this.#source
    if (source.kind === 'stream') fail('UNSUPPORTED', 'DataLoader', 'a stream needs for await')
    this.#begin()
    try {
      for (const values of this.#values(source)) {
        const made = this.#made(values)
        if (types.isPromise(made)) {
          made.then(free, () => {})
          fail('UNSUPPORTED', 'DataLoader', 'a source or collate that returns promises needs for await')
        }
        this.#give(made.tensors)
        yield made.batch
      }
      this.#end()
    } finally {
      this.#finish()
    }
  }

  /** The rest of the epoch. Timers, signals and I/O run between two batches if they have not for some milliseconds. */
  async *[Symbol.asyncIterator](): AsyncGenerator<B, void, undefined> {
    this.#begin()
    const waiting = new Waiting()
    const ahead = this.#produce(waiting)
    const queue: Promise<IteratorResult<Made<B>>>[] = []
    try {
      for (;;) {
        while (queue.length <= this.#options.prefetch) {
          const next = withoutScope(() => ahead.next())
          next.catch(() => {}) // seen when it is its turn
          queue.push(next)
        }
        const { value, done } = await queue.shift()!
        if (done) break
        await turnIfDue()
        this.#give(value.tensors)
        yield value.batch
      }
      this.#end()
    } finally {
      waiting.end()
      const last = ahead.return(undefined).catch(() => {})
      for (const next of queue) free((await next.catch(() => null))?.value)
      await last
      this.#finish()
    }
  }

  async *#produce(waiting: Waiting): AsyncGenerator<Made<B>, undefined, undefined> {
    const source = this.#source
    for await (const values of source.kind === 'stream'
      ? this.#fromStream(source.open, waiting)
      : this.#values(source)) {
      const made = await waiting.for<Made<B>>(() => this.#made(values), free)
      if (made === null) break
      yield made
    }
    return undefined
  }

  /** What gives the examples, or the batch, of each batch that is left. */
  *#values(source: Exclude<Source<T, B>, { kind: 'stream' }>): Generator<Values<T, B>, void, undefined> {
    for (const indices of this.#indices(source.length))
      yield () => (source.kind === 'batches' ? source.batch(indices) : this.#examples(source.get, indices))
  }

  async *#fromStream(open: Stream<T>, waiting: Waiting): AsyncGenerator<Values<T, B>, void, undefined> {
    const { batchSize, shuffle, dropLast, window } = this.#options
    const stream = open(this.#epoch)
    if (!isIterable(stream))
      fail('OPTION', 'DataLoader', `a stream must return an iterable of examples, got ${show(stream)}`)
    const examples = waiting.each(stream)
    let skipped = this.#batch * batchSize
    let pending: T[] = []
    for await (const example of shuffle ? shuffledWindows(examples, window, this.#seed, this.#epoch) : examples) {
      if (skipped > 0) {
        skipped--
        continue
      }
      pending.push(example)
      if (pending.length < batchSize) continue
      const full = pending
      pending = []
      yield () => full
    }
    if (pending.length > 0 && !dropLast) yield () => pending
  }

  /** The numbers of the examples of each batch that is left. */
  *#indices(length: number): Generator<Int32Array, void, undefined> {
    const { batchSize, shuffle } = this.#options
    const order = orderOf(length, shuffle, this.#seed, this.#epoch)
    for (let batch = this.#batch; batch < this.batches!; batch++)
      yield order.slice(batch * batchSize, (batch + 1) * batchSize)
  }

  #examples(get: Dataset<T>['get'], indices: Int32Array): T[] | Promise<T[]> {
    const examples: (T | Promise<T>)[] = []
    const hasPromises = () => examples.some((example) => types.isPromise(example))
    try {
      for (const i of indices) examples.push(get(i))
    } catch (error) {
      if (!hasPromises()) throw error
      examples.push(Promise.reject(error))
    }
    return hasPromises() ? allOf(examples) : (examples as T[])
  }

  /** The batch. What is made for it beside it is freed. */
  #made(values: Values<T, B>): Made<B> | Promise<Made<B>> {
    const { collate } = this.#options
    const collated = (value: B | T[]) => (collate ? collate(value as T[]) : value) as B | Promise<B>
    return withoutScope(() => scope(() => after(after(values(), collated), (batch) => this.#ownOf(batch))))
  }

  /** The tensors of a batch that have been made for it. */
  #ownOf(batch: B): Made<B> {
    const all = [...tensorsIn(batch)]
    const isNew = (x: Tensor): boolean => currentScope()!.tensors.has(x)
    return { batch, tensors: this.#source.kind === 'batches' ? all : all.filter(isNew) }
  }

  #begin(): void {
    this.#expectIdle('DataLoader')
    this.#isRunning = true
  }

  #give(tensors: readonly Tensor[]): void {
    for (const x of this.#given) x.dispose()
    this.#given = tensors
    this.#batch++
  }

  #end(): void {
    this.#epoch++
    this.#batch = 0
  }

  #finish(): void {
    for (const x of this.#given) x.dispose()
    this.#given = []
    this.#isRunning = false
  }

  static {
    isDataLoader = (value): value is DataLoader<unknown, unknown> =>
      typeof value === 'object' && value !== null && #isRunning in value
    stageLoader = (loader, op, what, _, state) => {
      loader.#expectIdle(op)
      return checkFit(op, what, () => loader.#staged(op, state))
    }
  }
}

/** A batch with the tensors that the loader frees. */
interface Made<B> {
  readonly batch: B
  readonly tensors: readonly Tensor[]
}

function free(made: Made<unknown> | null | undefined): void {
  for (const x of made?.tensors ?? []) x.dispose()
}

/** What gives examples, or a batch. */
type Values<T, B> = () => B | T[] | Promise<B | T[]>

/** `next` of a value, now if it is no promise. */
function after<V, W>(value: V | PromiseLike<V>, next: (value: V) => W | Promise<W>): W | Promise<W> {
  return isPromise(value) ? Promise.resolve(value).then(next) : next(value)
}

/** As Promise.all, but waits for all also when one fails: a scope around it frees what they make. */
async function allOf<T>(values: readonly (T | Promise<T>)[]): Promise<T[]> {
  await Promise.allSettled(values)
  return Promise.all(values)
}

const isIterable = (value: unknown): boolean => {
  const { [Symbol.asyncIterator]: later, [Symbol.iterator]: now } = (value ?? {}) as Partial<
    AsyncIterable<unknown> & Iterable<unknown>
  >
  return typeof (later ?? now) === 'function'
}
