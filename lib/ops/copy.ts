import { scope } from '../autograd/scope.js'
import { fail } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import { type DType, dtypeCode, type TypedArray } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { tensor } from '../tensor/create.js'
import { consumed } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
import { checkTensor, handleOf, isTensor, type NestedArray, sourceOf, type Tensor, wrap } from '../tensor/tensor.js'
import { stridesOf } from './strided.js'

function copyFrom(target: Tensor, source: Tensor | TypedArray | number | NestedArray): Tensor {
  const op = 'Tensor.copyFrom'
  checkTensor(op, 'this', target)
  if (sourceOf(target))
    fail('UNSUPPORTED', op, 'this tensor is the result of a recorded operation; copy into a detach()')
  const { shape, dtype, device } = target
  scope(() => {
    const values = isTensor(source)
      ? checkTensor(op, 'source', source)
      : tensor(source, ArrayBuffer.isView(source) ? shape : null, { dtype, device })
    checkTensor(op, 'source', values, { shape, dtype: values.dtype, device: values.device })
    overwrite(target, isTensor(source) ? copyLike(values, target) : values) // a tensor may share memory with this one
  })
  return target
}

/** Writes values over those of a tensor of the same shape, dtype and device, without memory. */
export function overwrite(target: Tensor, values: Tensor): void {
  if (target.size > 0) native.stridedWrite(handleOf(target), handleOf(values), stridesOf(target.shape), 0)
}

/**
 * What to write over each target, in its dtype and on its device: the source itself where it is so and no target shares its
 * memory, else a copy.
 */
export function valuesFor(pairs: readonly { source: Tensor; target: Tensor }[]): Tensor[] {
  const targets = new Set(pairs.map(({ target }) => target))
  return pairs.map(({ source, target }) => {
    const fits = source.dtype === target.dtype && source.device === target.device
    return fits && !targets.has(source) && native.unique(handleOf(source)) ? source : copyLike(source, target)
  })
}

/** A copy in the dtype and on the device of `like`, without history. */
export function copyLike(source: Tensor, { dtype, device }: Tensor): Tensor {
  const converted = native.convert(handleOf(source), dtypeCode(dtype))
  const handle =
    source.device === device
      ? converted
      : consumed(converted, () => native.toDevice(converted, deviceIndex('copyFrom', device)))
  return wrap(handle, { shape: source.shape, dtype, device })
}

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /**
     * Writes values over those of this tensor, in place: of a tensor of the same shape, from any device and converted
     * from any dtype, or of what `tensor()` takes. Nothing is recorded for a backward, and one that needs the old values
     * says so. Errors: SHAPE, DTYPE; UNSUPPORTED for a tensor with a history.
     *
     * @example
     * ```ts
     * console.log(zeros([3]).copyFrom([1, 2, 3]).dataSync()) // → Float32Array(3) [ 1, 2, 3 ]
     * ```
     */
    copyFrom(source: Tensor | TypedArray | number | NestedArray): this
  }
}
asMethods({ copyFrom })
