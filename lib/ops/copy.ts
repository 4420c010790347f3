import { fail } from '../check.js'
import { type NestedArray, tensor } from '../create.js'
import { deviceIndex } from '../device.js'
import { dtypeCode, type TypedArray } from '../dtype.js'
import { native } from '../native.js'
import { checkTensor, handleOf, isTensor, sourceOf, type Tensor } from '../tensor.js'
import { stridesOf } from './strided.js'

/** Writes values over those of `target`, which keeps its shape, dtype and device. See {@link Tensor.copyFrom}. */
export function copyInto(target: Tensor, source: Tensor | TypedArray | number | NestedArray): void {
  const op = 'Tensor.copyFrom'
  checkTensor(op, 'this', target)
  if (sourceOf(target))
    fail('UNSUPPORTED', op, 'this tensor is the result of a recorded operation; copy into a detach()')
  const { shape, dtype, device } = target
  if (isTensor(source)) {
    checkTensor(op, 'source', source)
    checkTensor(op, 'source', source, { shape, dtype: source.dtype, device: source.device })
    write(target, source)
    return
  }
  const own = tensor(source, ArrayBuffer.isView(source) ? shape : null, { dtype, device })
  try {
    checkTensor(op, 'source', own, target)
    write(target, own)
  } finally {
    own.dispose()
  }
}

/** Converts to the dtype and brings to the device of `target`. A tensor that shares its memory has the values already. */
function write(target: Tensor, source: Tensor): void {
  const { dtype, device, shape, size } = target
  const converted = native.convert(handleOf(source), dtypeCode(dtype))
  let handle = converted
  try {
    if (source.device !== device) handle = native.toDevice(converted, deviceIndex('Tensor.copyFrom', device))
    if (size > 0) native.scatter(handleOf(target), handle, stridesOf(shape), 0)
  } finally {
    native.release(converted)
    if (handle !== converted) native.release(handle)
  }
}
