import { native } from '../native.js'
import { adopt, checkFloat, handleOf, moveToScope, Tensor, type TensorMeta } from '../tensor.js'

/**
 * A tensor that a module trains: a leaf that requires a gradient and that no scope frees.
 *
 * @example
 * const scale = new Parameter(ones([64]))
 */
export class Parameter extends Tensor {
  /** Shares the memory of `tensor`, which is then free to be disposed. */
  constructor(tensor: Tensor) {
    checkFloat('Parameter', 'tensor', tensor)
    native.retain(handleOf(tensor))
    super(adopt, handleOf(tensor), tensor as TensorMeta)
    moveToScope(this, null)
    this.requiresGrad = true
    native.keepPacked(handleOf(this)) // a backend may keep copies of weights in layouts of its own
  }
}
