import { record } from '../autograd/autograd.js'
import { fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

/**
 * Root-mean-square norm over the last axis (Zhang and Sennrich, arXiv 1910.07467, in the form of st-moe-pytorch):
 * y = x / max(‖x‖₂, 1e-12) · gamma · √D, x [..., D], gamma [D], f32 or f64. The gradient of an all-zero row is 0 (there
 * it is near 1e12). Errors: SHAPE, DTYPE, DEVICE.
 *
 * @example
 * ```ts
 * console.log(rmsNorm(tensor([[3, 3, 3, 3]]), ones([4])).dataSync()) // → Float32Array(4) [ 1, 1, 1, 1 ]
 * ```
 */
export function rmsNorm<D extends DType>(x: Tensor<D>, gamma: Tensor): Tensor<D> {
  const op = 'rmsNorm'
  checkFloat(op, 'x', x)
  if (x.shape.length === 0) fail('SHAPE', op, 'x must have at least one dimension, got []')
  const D = x.shape[x.shape.length - 1]
  checkTensor(op, 'gamma', gamma)
  if (gamma.shape.length !== 1 || gamma.shape[0] !== D) {
    fail('SHAPE', op, `x must be [..., ${gamma.size}] for gamma ${showShape(gamma.shape)}, got ${showShape(x.shape)}`)
  }
  checkTensor(op, 'gamma', gamma, { shape: [D], dtype: x.dtype, device: x.device })
  const y = wrap(native.rmsnorm({ x: handleOf(x), gamma: handleOf(gamma) }), x)
  record({
    op,
    inputs: [x, gamma],
    outputs: [y],
    saved: [x, gamma],
    backward: ([dy], [x, gamma], [needX, needGamma], addendOf) => {
      // With x + f(rmsNorm(x)) x has a gradient already: the sum is then one pass over memory, not two.
      const dxAddend = needX ? addendOf(0) : null
      const { dx, dgamma } = native.rmsnormBackward({ dy: dy!, x, gamma, dxAddend, dx: needX, dgamma: needGamma })
      return [dx, dgamma]
    },
  })
  return y
}
