import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { type OptionsOf, oneOf, reader } from '../runtime/options.js'
import { groupHandle, type ProcessGroup } from '../runtime/process-group.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { recordExchange } from './collectives.js'

const reductions = ['sum', 'max', 'min'] as const
const sum = reductions.indexOf('sum')

const declared = {
  /** What becomes of the elements of all ranks: their sum, the largest or the smallest. Default 'sum'. */
  op: oneOf(reductions, { default: 'sum' }),
}
const readOptions = reader(declared)

/** Options of {@link allReduce}. */
export type AllReduceOptions = OptionsOf<typeof declared>

/**
 * The sum of x over all ranks, of the same shape on each, element by element; or the largest or smallest. Any dtype; sums
 * are added in the order of the ranks, those of bf16 and f16 in float32 and rounded once; those of i32 wrap around; NaN is
 * larger and smaller than anything. The sum is differentiable in f32 and f64, with respect to the sum of all ranks' losses:
 * the gradient of x is the sum of all gradients of the result, so the backward runs on all ranks.
 *
 * Errors: OPTION, DISPOSED, PEER_LOST, TIMEOUT, PROCESS_GROUP; UNSUPPORTED on a GPU.
 *
 * @example
 * ```ts
 * const group = initProcessGroup()
 * console.log(ops.allReduce(tensor([1, 2]), group).dataSync()) // → Float32Array(2) [ 1, 2 ]
 * group.destroy()
 * ```
 */
export function allReduce<D extends DType>(
  x: Tensor<D>,
  group: ProcessGroup,
  options: AllReduceOptions = {},
): Tensor<D> {
  const op = 'allReduce'
  const handle = groupHandle(op, group)
  checkTensor(op, 'x', x)
  const reduction = reductions.indexOf(readOptions(op, options).op)
  const y = wrap(native.allReduce({ x: handleOf(x), group: handle, reduction }), x)
  if (reduction === sum) recordExchange(op, x, y, (dy) => native.allReduce({ x: dy, group: handle, reduction }))
  return y
}
