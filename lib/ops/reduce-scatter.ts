import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { type OptionsOf, reader } from '../runtime/options.js'
import type { ProcessGroup } from '../runtime/process-group.js'
import { handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { exchangeRows, recordExchange, rowsByRank, rowsOf, splitsOf } from './collectives.js'

const declared = {
  /** The rows that each rank gets. By default all get as many. */
  splits: rowsByRank,
}
const readOptions = reader(declared)

/** Options of {@link reduceScatter}. */
export type ReduceScatterOptions = OptionsOf<typeof declared>

/**
 * The sum of x over all ranks, divided between them: x [S, …], of the same shape on each and of any dtype → the rows of this
 * rank. The sum is that of `allReduce`, to the bit. Differentiable in f32 and f64 with respect to the sum of all ranks'
 * losses, by `allGather`; the backward runs on all ranks.
 *
 * Errors: SHAPE for [], for rows that cannot be divided and for `splits` that do not add up; OPTION, DISPOSED, PEER_LOST,
 * TIMEOUT, PROCESS_GROUP; UNSUPPORTED on a GPU.
 *
 * @example
 * ```ts
 * const group = initProcessGroup()
 * console.log(ops.reduceScatter(tensor([1, 2, 3]), group).shape) // → [ 3 ]
 * group.destroy()
 * ```
 */
export function reduceScatter<D extends DType>(
  x: Tensor<D>,
  group: ProcessGroup,
  options: ReduceScatterOptions = {},
): Tensor<D> {
  const op = 'reduceScatter'
  const at = rowsOf(op, x, group)
  const rows = splitsOf(op, 'splits', readOptions(op, options).splits, at.rows, at.ranks)
  const own = rows[at.rank]
  const { dtype, device } = x
  const handle = exchangeRows(handleOf(x), at.inner, at.rows, own, (x) =>
    native.reduceScatter({ x, group: at.group, rows }),
  )
  const y = wrap(handle, { shape: [own, ...at.inner], dtype, device })
  recordExchange(op, x, y, (dy) =>
    exchangeRows(dy, at.inner, own, at.rows, (x) => native.allGather({ x, group: at.group, rows })),
  )
  return y
}
