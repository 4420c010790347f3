import { deviceIndex } from '../runtime/device.js'
import { type DType, dtypeCode } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { integer, type OptionsOf, reader } from '../runtime/options.js'
import type { ProcessGroup } from '../runtime/process-group.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { otherRank, recordExchange } from './collectives.js'

const declared = {
  /** The rank that gets x. */
  to: integer({ min: 0 }),
}
const readOptions = reader(declared)

/** Options of {@link send}. */
export type SendOptions = OptionsOf<typeof declared>

/**
 * Sends x, of any shape and dtype, to another rank, which calls `recv`. Returns when x may be changed; that may be before the
 * other rank has it. The result is a 0 [], in f32 and f64 with a gradient: its backward receives the gradient of x from the
 * other rank. So add it to the loss of this rank, or call `backward()` on it where there is none.
 *
 * Errors: OPTION unless `to` is another rank of the group; DISPOSED, PEER_LOST, TIMEOUT; PROCESS_GROUP if the other rank
 * expects another shape or dtype; UNSUPPORTED on a GPU.
 *
 * @example
 * ```ts
 * const group = initProcessGroup()
 * if (group.size === 2 && group.rank === 0) ops.send(tensor([1, 2]), group, { to: 1 })
 * group.destroy()
 * ```
 */
export function send<D extends DType>(x: Tensor<D>, group: ProcessGroup, options: SendOptions): Tensor<D> {
  const op = 'send'
  const [handle, to] = otherRank(op, group, 'to', readOptions(op, options).to)
  const { shape, dtype, device } = checkTensor(op, 'x', x)
  const sent = wrap(native.send({ x: handleOf(x), group: handle, to }), { shape: [], dtype: x.dtype, device })
  recordExchange(op, x, sent, () =>
    native.recv({ shape, dtype: dtypeCode(dtype), device: deviceIndex(op, device), group: handle, from: to }),
  )
  return sent
}
