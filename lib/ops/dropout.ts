import { record } from '../autograd/autograd.js'
import { type Generator, withSample } from '../autograd/random.js'
import { checkRate } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

/**
 * Zeroes each element with probability `p` in [0, 1) and divides the others by 1 − p (Srivastava et al., JMLR 15, 2014,
 * in the inverted form). Any shape, f32 or f64. Errors: DTYPE, OPTION.
 *
 * @example
 * ```ts
 * const y = dropout(ones([1000]), 0.5, new Generator(1))
 * console.log([...new Set(y.dataSync())].sort()) // → [ 0, 2 ]
 * ```
 */
export function dropout<D extends DType>(x: Tensor<D>, p: number, generator?: Generator): Tensor<D> {
  checkFloat('dropout', 'x', x)
  checkRate('dropout', 'p', p)
  return withSample('dropout', generator, ({ seed, step }) => {
    const drop = (x: Handle) => native.dropout({ x, p, seed, step })
    const y = wrap(drop(handleOf(x)), x)
    record({ op: 'dropout', inputs: [x], outputs: [y], backward: ([dy]) => [drop(dy!)] })
    return y
  })
}
