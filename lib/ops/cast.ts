import { record } from '../autograd/autograd.js'
import { refuseToWait } from '../autograd/context.js'
import { fail } from '../runtime/check.js'
import { checkDevice, type Device, deviceIndex, isDeviceName } from '../runtime/device.js'
import { checkDType, type DType, dtypeCode, dtypes, isBlocked, isFloat } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { share } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

/**
 * A copy with its own memory, any dtype; differentiable. `requiresGrad = true` on it makes it a leaf.
 *
 * @example
 * ```ts
 * const x = ones([3])
 * const copy = ops.clone(x)
 * x.dispose()
 * console.log(copy.dataSync()) // → Float32Array(3) [ 1, 1, 1 ]
 * ```
 */
export function clone<D extends DType>(x: Tensor<D>): Tensor<D> {
  checkTensor('clone', 'x', x)
  const y = wrap(native.convert(handleOf(x), dtypeCode(x.dtype)), x)
  if (isFloat(x.dtype)) record({ op: 'clone', inputs: [x], outputs: [y], backward: ([dy]) => [share(dy!)] })
  return y
}

function cast<D extends DType>(x: Tensor, dtype: D): Tensor<D> {
  const y = wrap(native.convert(handleOf(x), dtypeCode(dtype)), { shape: x.shape, dtype, device: x.device })
  if (isFloat(dtype)) {
    const from = dtypeCode(x.dtype)
    record({ op: 'to', inputs: [x], outputs: [y], backward: ([dy]) => [native.convert(dy!, from)] })
  }
  return y
}

function move<D extends DType>(x: Tensor<D>, device: Device): Tensor<D> {
  refuseToWait('to', 'it copies through the host')
  const back = deviceIndex('to', x.device)
  const y = wrap(native.toDevice(handleOf(x), deviceIndex('to', device)), { shape: x.shape, dtype: x.dtype, device })
  if (isFloat(x.dtype))
    record({ op: 'to', inputs: [x], outputs: [y], backward: ([dy]) => [native.toDevice(dy!, back)] })
  return y
}

/**
 * A tensor of another dtype, or on another device; itself if nothing changes. Rounds to nearest even; to i32 it
 * truncates and saturates, and NaN becomes 0; to int8 it rounds as {@link quantize} does. Differentiable between f32 and
 * f64, and between devices. Errors: DTYPE, DEVICE, BACKEND_UNAVAILABLE; SHAPE of [] to int8.
 *
 * @example
 * ```ts
 * console.log(ops.to(tensor([1.7, -1.7]), 'i32').dataSync()) // → Int32Array(2) [ 1, -1 ]
 * ```
 */
export function to<D extends DType>(x: Tensor, target: D): Tensor<D>
export function to<D extends DType>(x: Tensor<D>, target: Device): Tensor<D>
export function to(x: Tensor, target: DType | Device): Tensor
export function to(x: Tensor, target: DType | Device): Tensor {
  checkTensor('to', 'x', x)
  if (typeof target !== 'string') fail('OPTION', 'to', `target must be a dtype or a device, got ${show(target)}`)
  if (isDeviceName(target)) {
    const device = checkDevice('to', target)
    return device === x.device ? x : move(x, device)
  }
  const dtype = checkDType('to', target, dtypes)
  if (isBlocked(dtype) && x.shape.length === 0) fail('SHAPE', 'to', `${dtype} needs rows, got shape []`)
  return dtype === x.dtype ? x : cast(x, dtype)
}

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.clone}. */
    clone(): Tensor<D>
    /** See {@link ops.to}. */
    to<T extends DType>(target: T): Tensor<T>
    /** See {@link ops.to}. */
    to(target: Device): Tensor<D>
    /** See {@link ops.to}. */
    to(target: DType | Device): Tensor
  }
}
asMethods({ clone, to })
