import { native } from '../native.js'
import { adopt, checkFloat, handleOf, moveToScope, Tensor, type TensorMeta } from '../tensor.js'

/**
 * A tensor that a module trains: a leaf that requires a gradient and that no scope frees.
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
export class Parameter extends Tensor {
  /** Shares the memory of `tensor`, f32 or f64 (else DTYPE), which is then free to be disposed. */
  constructor(tensor: Tensor) {
    checkFloat('Parameter', 'tensor', tensor)
    native.retain(handleOf(tensor))
    super(adopt, handleOf(tensor), tensor as TensorMeta)
    moveToScope(this, null)
    this.requiresGrad = true
    native.keepPacked(handleOf(this)) // a backend may keep copies of weights in layouts of its own
  }
}
