import type { DType } from '../dtype.js'
import { scope } from '../scope.js'
import { checkTensor, type Tensor } from '../tensor.js'
import { sub } from './binary.js'
import { mean } from './reduce.js'
import { square } from './unary.js'

/**
 * Mean of the squared differences, shape []. Both tensors of one shape, f32 or f64. Errors: SHAPE, DTYPE, DEVICE.
 *
 * @example
 * ```ts
 * console.log(mseLoss(tensor([1, 2]), tensor([1, 4])).item()) // → 2
 * ```
 */
export function mseLoss<D extends DType>(prediction: Tensor<D>, target: Tensor): Tensor<D> {
  checkTensor('mseLoss', 'prediction', prediction)
  checkTensor('mseLoss', 'target', target, prediction)
  return scope(() => mean(square(sub(prediction, target))))
}
