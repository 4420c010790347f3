import { checkShape } from '../runtime/check.js'
import { checkDType, type DType, dtypeCode } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { integer, type OptionsOf, optional, reader } from '../runtime/options.js'
import type { ProcessGroup } from '../runtime/process-group.js'
import { type Tensor, wrap } from '../tensor/tensor.js'
import { otherRank, recordExchange } from './collectives.js'

const declared = {
  /** The rank that sends. */
  from: integer({ min: 0 }),
  /** The dtype of what it sends. By default 'f32'. */
  dtype: optional<DType>({ check: (op, _name, value) => checkDType(op, value) }),
}
const readOptions = reader(declared)

/** Options of {@link recv}. */
export type RecvOptions<D extends DType = DType> = Omit<OptionsOf<typeof declared>, 'dtype'> & {
  /** The dtype of what it sends. By default 'f32'. */
  dtype?: D
}

/**
 * What another rank sends to this one with `send`: a tensor of `shape`, on the CPU. In f32 and f64 it has a gradient, which
 * the backward sends back.
 *
 * Errors: OPTION unless `from` is another rank of the group; SHAPE, DTYPE, DISPOSED, PEER_LOST, TIMEOUT; PROCESS_GROUP if the
 * other rank sends another shape or dtype.
 *
 * @example
 * ```ts
 * const group = initProcessGroup()
 * if (group.size === 2 && group.rank === 1) console.log(ops.recv([2], group, { from: 0 }).dataSync())
 * group.destroy()
 * ```
 */
export function recv<D extends DType = 'f32'>(
  shape: readonly number[],
  group: ProcessGroup,
  options: RecvOptions<D>,
): Tensor<D> {
  const op = 'recv'
  const given = readOptions(op, options)
  const [handle, from] = otherRank(op, group, 'from', given.from)
  const dtype = (given.dtype ?? 'f32') as D
  const sizes = checkShape(op, 'shape', shape)
  const received = native.recv({ shape: sizes, dtype: dtypeCode(dtype), device: 0, group: handle, from })
  const y = wrap(received, { shape: sizes, dtype, device: 'cpu' })
  recordExchange(op, null, y, (dy) => native.send({ x: dy, group: handle, to: from }))
  return y
}
