import { sub } from '../ops/binary.js'
import { dispatch } from '../ops/dispatch.js'
import { reshape } from '../ops/reshape.js'
import type { DType } from '../runtime/dtype.js'
import { ones, zeros } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'

/**
 * x [B, N, D] with zeros in the rows of padding, where the i32 mask [B, N] is 0, even if these are NaN; its gradient has
 * zeros there. Each token is dispatched to the one slot of its own.
 */
export function withoutPadding<D extends DType>(x: Tensor<D>, mask: Tensor): Tensor<D> {
  const { shape, dtype, device } = x
  const [rows, D] = [mask.size, shape[2]]
  const each = [rows, 1, 1]
  const routing = {
    expertIndex: zeros(each, { dtype: 'i32', device }),
    position: reshape(sub(mask, 1), each) as Tensor<'i32'>,
    weight: ones(each, { dtype, device }),
    gate: ones(each, { dtype, device }),
    kept: reshape(mask, each) as Tensor<'i32'>,
    mask: null,
    numExperts: 1,
    capacity: 1,
  }
  return reshape(dispatch(reshape(x, [rows, 1, D]), routing, { straightThrough: false }), shape)
}
