import { fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'
import { type OptionsOf, reader } from '../runtime/options.js'
import type { ProcessGroup } from '../runtime/process-group.js'
import { tensor } from '../tensor/create.js'
import { handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { countsOf, exchangeRows, recordExchange, rowsByRank, rowsOf, splitsOf, total } from './collectives.js'

const declared = {
  /** The rows that each rank gets. By default all get as many. */
  splits: rowsByRank,
  /**
   * The rows that come from each rank. By default they are asked for if `splits` is given, which waits for the other ranks
   * and is not possible in asynchronous calls and captured steps; else as many come as go.
   */
  outputSplits: rowsByRank,
}
const readOptions = reader(declared)

/** Options of {@link allToAll}. */
export type AllToAllOptions = OptionsOf<typeof declared>

/**
 * Sends rows to each rank and returns those that come: x [S, …], any dtype → [M, …], the rows of rank 0 first. `splits` says
 * how many go to each rank, in order. Differentiable in f32 and f64 with respect to the sum of all ranks' losses; the backward
 * is the exchange back, and runs on all ranks.
 *
 * Errors: SHAPE for [], for rows that cannot be divided and for `splits` that do not add up; PROCESS_GROUP if a rank sends
 * another number of rows than expected, where that is compared: the first time, or always with `debug`; OPTION, DISPOSED,
 * PEER_LOST, TIMEOUT; UNSUPPORTED on a GPU.
 *
 * @example
 * ```ts
 * const group = initProcessGroup()
 * console.log(ops.allToAll(tensor([1, 2, 3]), group, { splits: [3] }).dataSync()) // → Float32Array(3) [ 1, 2, 3 ]
 * group.destroy()
 * ```
 */
export function allToAll<D extends DType>(x: Tensor<D>, group: ProcessGroup, options: AllToAllOptions = {}): Tensor<D> {
  const op = 'allToAll'
  const at = rowsOf(op, x, group)
  const { splits, outputSplits } = readOptions(op, options)
  const sent = splitsOf(op, 'splits', splits, at.rows, at.ranks)
  const received = outputSplits
    ? countsOf(op, 'outputSplits', outputSplits, at.ranks)
    : splits
      ? askedFor(sent, group)
      : sent
  if (received[at.rank] !== sent[at.rank])
    fail(
      'SHAPE',
      op,
      `outputSplits[${at.rank}] must be the ${sent[at.rank]} rows that this rank sends to itself, got ${received[at.rank]}`,
    )
  return exchange(op, x, at.group, sent, received)
}

/** The exchange of checked rows; `after` as for {@link recordExchange}. */
export function exchange<D extends DType>(
  op: string,
  x: Tensor<D>,
  group: number,
  sent: Float64Array,
  received: Float64Array,
  after: readonly Tensor[] = [],
): Tensor<D> {
  const [rows, ...inner] = x.shape
  const come = total(received)
  const { dtype, device } = x
  const y = wrap(
    exchangeRows(handleOf(x), inner, rows, come, (x) => native.allToAll({ x, group, sent, received })),
    { shape: [come, ...inner], dtype, device },
  )
  const back = (dy: Handle) =>
    exchangeRows(dy, inner, come, rows, (x) => native.allToAll({ x, group, sent: received, received: sent }))
  recordExchange(op, x, y, back, after)
  return y
}

/** How many rows each rank sends to this one. */
function askedFor(sent: Float64Array, group: ProcessGroup): Float64Array {
  using counts = tensor(Float64Array.from(sent))
  using found = allToAll(counts, group)
  return Float64Array.from(found.dataSync())
}
