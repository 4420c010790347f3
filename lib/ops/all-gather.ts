import { fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { type OptionsOf, reader } from '../runtime/options.js'
import type { ProcessGroup } from '../runtime/process-group.js'
import { handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { countsOf, exchangeRows, recordExchange, rowsByRank, rowsOf, total } from './collectives.js'

const declared = {
  /** The rows of each rank. By default all have as many as this one. */
  splits: rowsByRank,
}
const readOptions = reader(declared)

/** Options of {@link allGather}. */
export type AllGatherOptions = OptionsOf<typeof declared>

/**
 * The rows of all ranks, one rank after the other: x [S, …], any dtype → [Σ S, …]. S may differ between ranks if all pass
 * `splits`. Differentiable in f32 and f64 with respect to the sum of all ranks' losses, by `reduceScatter`; the backward runs
 * on all ranks.
 *
 * Errors: SHAPE for [] and for `splits` that do not fit; OPTION, DISPOSED, PEER_LOST, TIMEOUT, PROCESS_GROUP; UNSUPPORTED
 * on a GPU.
 *
 * @example
 * ```ts
 * const group = initProcessGroup()
 * console.log(ops.allGather(tensor([[1, 2]]), group).shape) // → [ 1, 2 ]
 * group.destroy()
 * ```
 */
export function allGather<D extends DType>(
  x: Tensor<D>,
  group: ProcessGroup,
  options: AllGatherOptions = {},
): Tensor<D> {
  const op = 'allGather'
  const at = rowsOf(op, x, group)
  const { splits } = readOptions(op, options)
  const rows = splits ? countsOf(op, 'splits', splits, at.ranks) : new Float64Array(at.ranks).fill(at.rows)
  if (rows[at.rank] !== at.rows)
    fail('SHAPE', op, `splits[${at.rank}] must be the ${at.rows} rows of x at this rank, got ${rows[at.rank]}`)
  const all = total(rows)
  const { dtype, device } = x
  const handle = exchangeRows(handleOf(x), at.inner, at.rows, all, (x) =>
    native.allGather({ x, group: at.group, rows }),
  )
  const y = wrap(handle, { shape: [all, ...at.inner], dtype, device })
  recordExchange(op, x, y, (dy) =>
    exchangeRows(dy, at.inner, all, at.rows, (x) => native.reduceScatter({ x, group: at.group, rows })),
  )
  return y
}
