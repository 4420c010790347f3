import { refuseInAsync } from '../autograd/context.js'
import { allOrNone, outlive } from '../autograd/scope.js'
import type { FloatDType, WeightFormat } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { adopt, checkFloat, handleOf, Tensor } from '../tensor/tensor.js'

/** The parameter with the values that `make` returns. */
export const newParameter = (make: () => Tensor): Parameter => allOrNone(() => new Parameter(make()))

/**
 * A tensor that a module trains: a leaf that requires a gradient and that no scope frees. {@link Module.freeze} may store it
 * in 16 bits.
 *
 * @example
 * ```ts
 * class Scale extends Module {
 *   factor = new Parameter(ones([4]))
 *   forward(x: Tensor): Tensor {
 *     return x.mul(this.factor)
 *   }
 * }
 * console.log([...new Scale().parameters()].length) // → 1
 * ```
 */
export class Parameter extends Tensor<FloatDType | WeightFormat> {
  /** Shares the memory of `tensor`, f32 or f64 (else DTYPE), which is then free to be disposed. */
  constructor(tensor: Tensor) {
    checkFloat('Parameter', 'tensor', tensor)
    refuseInAsync('Parameter', 'an asynchronous call cannot make layers or parameters: make them before the call')
    native.keepPacked(handleOf(tensor)) // a backend may keep copies of weights in layouts of its own
    native.retain(handleOf(tensor))
    super(adopt, handleOf(tensor), tensor as Tensor<FloatDType>)
    outlive(this)
    this.requiresGrad = true
  }
}
