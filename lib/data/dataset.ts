import { noGrad, scope } from '../autograd/scope.js'
import { indexSelect } from '../ops/gather.js'
import { fail, showShape } from '../runtime/check.js'
import { show } from '../runtime/errors.js'
import { tensor } from '../tensor/create.js'
import { checkTensor, type Tensor } from '../tensor/tensor.js'

/** Examples by number, such as rows of a file: an array is one, too. */
export interface Dataset<T> {
  /** How many there are. */
  readonly length: number
  /** Example `index`, from 0 to length − 1. Tensors that it makes live as long as the batch, unless it keeps them. */
  get(index: number): T | Promise<T>
}

/** Whole batches by the numbers of their examples. */
export interface BatchDataset<B> {
  /** How many examples there are. */
  readonly length: number
  /**
   * The examples `indices` as a batch. Its tensors are new: the loader frees them when it gives the next batch, and other
   * tensors that this makes at once, unless it keeps them.
   */
  batch(indices: Int32Array): B | Promise<B>
}

/** Examples one after another, once per epoch: a function that begins them. Tensors that it makes are its own to free. */
export type Stream<T> = (epoch: number) => Iterable<T> | AsyncIterable<T>

/** The rows of tensors, see {@link tensorDataset}. */
export type RowsOf<T extends readonly Tensor[]> = { [K in keyof T]: T[K] }

/** Rows of tensors; batches need no promise. */
export interface TensorDataset<T extends readonly Tensor[]> extends BatchDataset<RowsOf<T>> {
  /** The rows `indices` of each tensor. Errors: OPTION for an index without a row, DISPOSED. */
  batch(indices: Int32Array): RowsOf<T>
}

/**
 * Examples that are rows of tensors [N, …] of one length, such as inputs and targets, of any dtype and device: a batch has
 * the rows of each, as torch.utils.data.TensorDataset. It reads the tensors, which stay the caller's. Errors: SHAPE,
 * OPTION, DISPOSED.
 *
 * @example
 * ```ts
 * const loader = new DataLoader(tensorDataset(randn([10, 4]), randn([10, 1])), { batchSize: 4 })
 * for (const [x, y] of loader) console.log(x.shape, y.shape)
 * // → [ 4, 4 ] [ 4, 1 ]
 * // → [ 4, 4 ] [ 4, 1 ]
 * // → [ 2, 4 ] [ 2, 1 ]
 * ```
 */
export function tensorDataset<T extends readonly Tensor[]>(...tensors: T): TensorDataset<T> {
  const op = 'tensorDataset'
  if (tensors.length === 0) fail('OPTION', op, 'needs at least one tensor')
  const lengths = tensors.map((x, i) => {
    const { shape } = checkTensor(op, `tensor ${i}`, x)
    if (shape.length === 0) fail('SHAPE', op, `tensor ${i} must be [N, …], got []`)
    return shape[0]
  })
  const other = lengths.findIndex((length) => length !== lengths[0])
  if (other >= 0)
    fail(
      'SHAPE',
      op,
      `tensor ${other} must have ${lengths[0]} rows like the first, got ${showShape(tensors[other].shape)}`,
    )
  return {
    length: lengths[0],
    batch: (indices) =>
      noGrad(() =>
        scope(() => {
          const rows = tensors.map((x) => indexSelect(x, 0, tensor(indices, null, { device: x.device })))
          return rows as unknown as RowsOf<T>
        }),
      ),
  }
}

/** Where examples come from. */
export type Source<T, B> =
  | { kind: 'batches'; length: number; batch: BatchDataset<B>['batch'] }
  | { kind: 'examples'; length: number; get: Dataset<T>['get'] }
  | { kind: 'stream'; length: null; open: Stream<T> }

const isLength = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 31

export function sourceOf<T, B>(op: string, source: unknown): Source<T, B> {
  if (typeof source === 'function') return { kind: 'stream', length: null, open: source as Stream<T> }
  if (Array.isArray(source)) {
    const examples: readonly T[] = source
    return { kind: 'examples', length: source.length, get: (i) => examples[i] }
  }
  if (typeof source === 'object' && source !== null) {
    const { length, batch, get } = source as Partial<Dataset<T> & BatchDataset<B>>
    if (isLength(length) && typeof batch === 'function')
      return { kind: 'batches', length, batch: (indices) => batch.call(source, indices) }
    if (isLength(length) && typeof get === 'function')
      return { kind: 'examples', length, get: (i) => get.call(source, i) }
  }
  return fail(
    'OPTION',
    op,
    `source must be an array, an object with length and get or batch, or a function that begins a stream, got ${show(source)}`,
  )
}
