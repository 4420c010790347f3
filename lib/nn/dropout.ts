import { dropout } from '../ops/dropout.js'
import { checkRate } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import { Module } from './module.js'

/**
 * {@link ops.dropout} in training, the identity in evaluation.
 *
 * @example
 * ```ts
 * const drop = new Dropout(0.1).eval()
 * console.log(drop.forward(ones([4])).dataSync()) // → Float32Array(4) [ 1, 1, 1, 1 ]
 * ```
 */
export class Dropout extends Module {
  /** Fraction of the elements that become 0. */
  readonly p: number

  /** `p` from 0, below 1, else OPTION. */
  constructor(p = 0.5) {
    super()
    this.p = checkRate('Dropout', 'p', p)
  }

  /** Any shape, f32 or f64; in evaluation x itself. */
  forward<D extends DType>(x: Tensor<D>): Tensor<D> {
    return this.training && this.p > 0 ? dropout(x, this.p) : x
  }
}
