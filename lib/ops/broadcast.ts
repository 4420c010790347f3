import { checkInteger } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { integer, type OptionsOf, reader } from '../runtime/options.js'
import { groupHandle, type ProcessGroup } from '../runtime/process-group.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { recordExchange } from './collectives.js'

const declared = {
  /** The rank whose tensor all get. Default 0. */
  root: integer({ min: 0, default: 0 }),
}
const readOptions = reader(declared)

/** Options of {@link broadcast}. */
export type BroadcastOptions = OptionsOf<typeof declared>

/**
 * x of one rank, on all of them; the other ranks pass a tensor of the same shape and dtype. Any dtype. Differentiable in f32
 * and f64 with respect to the sum of all ranks' losses: the root gets the sum of all gradients, the others zeros; the backward
 * runs on all ranks.
 *
 * Errors: OPTION, DISPOSED, PEER_LOST, TIMEOUT, PROCESS_GROUP; UNSUPPORTED on a GPU.
 *
 * @example
 * ```ts
 * const group = initProcessGroup()
 * console.log(ops.broadcast(tensor([1, 2]), group, { root: 0 }).dataSync()) // → Float32Array(2) [ 1, 2 ]
 * group.destroy()
 * ```
 */
export function broadcast<D extends DType>(
  x: Tensor<D>,
  group: ProcessGroup,
  options: BroadcastOptions = {},
): Tensor<D> {
  const op = 'broadcast'
  const handle = groupHandle(op, group)
  checkTensor(op, 'x', x)
  const root = checkInteger(op, 'root', readOptions(op, options).root, 0, group.size - 1)
  const y = wrap(native.broadcast({ x: handleOf(x), group: handle, root }), x)
  recordExchange(op, x, y, (dy) => native.broadcastBackward({ dy, group: handle, root }))
  return y
}
