import { record } from '../autograd/autograd.js'
import { checkNumber, fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

/**
 * Layer norm over the last axis (Ba, Kiros, Hinton, arXiv 1607.06450): y = (x − mean) / √(var + eps) · weight + bias,
 * x [..., D], weight and bias [D], f32 or f64. Errors: SHAPE, DTYPE, DEVICE, OPTION.
 *
 * @example
 * ```ts
 * const y = layerNorm(tensor([[3, 5]]), ones([2]), zeros([2]), 0)
 * console.log(y.dataSync()) // → Float32Array(2) [ -1, 1 ]
 * ```
 */
export function layerNorm<D extends DType>(x: Tensor<D>, weight: Tensor, bias: Tensor, eps = 1e-5): Tensor<D> {
  const op = 'layerNorm'
  checkFloat(op, 'x', x)
  checkNumber(op, 'eps', eps, 0)
  if (x.shape.length === 0) fail('SHAPE', op, 'x must have at least one dimension, got []')
  const D = x.shape[x.shape.length - 1]
  checkTensor(op, 'weight', weight)
  if (weight.shape.length !== 1 || weight.shape[0] !== D) {
    fail(
      'SHAPE',
      op,
      `x must be [..., ${weight.size}] for weight ${showShape(weight.shape)}, got ${showShape(x.shape)}`,
    )
  }
  const like = { shape: [D], dtype: x.dtype, device: x.device }
  checkTensor(op, 'weight', weight, like)
  checkTensor(op, 'bias', bias, like)
  const y = wrap(native.layernorm({ x: handleOf(x), weight: handleOf(weight), bias: handleOf(bias), eps }), x)
  record({
    op,
    inputs: [x, weight, bias],
    outputs: [y],
    saved: [x, weight],
    backward: ([dy], [x, weight], [needX, needWeight, needBias]) => {
      const wanted = { dx: needX, dweight: needWeight, dbias: needBias }
      const { dx, dweight, dbias } = native.layernormBackward({ dy: dy!, x, weight, eps, ...wanted })
      return [dx, dweight, dbias]
    },
  })
  return y
}
