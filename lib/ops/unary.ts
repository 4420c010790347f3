import { record } from '../autograd/autograd.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { unaryKind } from '../runtime/native-ops.js'
import { asMethods } from '../tensor/methods.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

function unary(op: keyof typeof unaryKind): <D extends DType>(x: Tensor<D>) => Tensor<D> {
  const kind = unaryKind[op]
  return (x) => {
    checkFloat(op, 'x', x)
    const y = wrap(native.unary({ x: handleOf(x), kind }), x)
    record({
      op,
      inputs: [x],
      outputs: [y],
      saved: [x],
      backward: ([dy], [xv]) => [native.unaryBackward({ x: xv, dy: dy!, kind })],
    })
    return y
  }
}

/**
 * −x. Any shape, f32 or f64, as all functions of one tensor here. Errors: DTYPE, DISPOSED.
 *
 * @example
 * ```ts
 * console.log(ops.neg(tensor([1, -2])).dataSync()) // → Float32Array(2) [ -1, 2 ]
 * ```
 */
export const neg = unary('neg')
/**
 * e to the power of x, element by element.
 *
 * @example
 * ```ts
 * console.log(ops.exp(tensor([0, -Infinity])).dataSync()) // → Float32Array(2) [ 1, 0 ]
 * ```
 */
export const exp = unary('exp')
/**
 * Natural logarithm, element by element; NaN below 0.
 *
 * @example
 * ```ts
 * console.log(ops.log(tensor([1, 0])).dataSync()) // → Float32Array(2) [ 0, -Infinity ]
 * ```
 */
export const log = unary('log')
/**
 * Square root, element by element; NaN below 0.
 *
 * @example
 * ```ts
 * console.log(ops.sqrt(tensor([4, 9])).dataSync()) // → Float32Array(2) [ 2, 3 ]
 * ```
 */
export const sqrt = unary('sqrt')
/**
 * |x|, element by element; derivative 0 at 0.
 *
 * @example
 * ```ts
 * console.log(ops.abs(tensor([-3, 2])).dataSync()) // → Float32Array(2) [ 3, 2 ]
 * ```
 */
export const abs = unary('abs')
/**
 * x², element by element.
 *
 * @example
 * ```ts
 * console.log(ops.square(tensor([-3, 2])).dataSync()) // → Float32Array(2) [ 9, 4 ]
 * ```
 */
export const square = unary('square')
/**
 * max(x, 0), element by element; derivative 0 at 0.
 *
 * @example
 * ```ts
 * console.log(relu(tensor([-3, 2])).dataSync()) // → Float32Array(2) [ 0, 2 ]
 * ```
 */
export const relu = unary('relu')
/**
 * z Φ(z), element by element: the exact form (Hendrycks and Gimpel, arXiv 1606.08415), not the tanh approximation.
 *
 * @example
 * ```ts
 * console.log(gelu(tensor(1)).item().toFixed(4)) // → 0.8413
 * ```
 */
export const gelu = unary('gelu')
/**
 * x · sigmoid(x), element by element (Elfwing et al., arXiv 1702.03118).
 *
 * @example
 * ```ts
 * console.log(silu(tensor(1)).item().toFixed(4)) // → 0.7311
 * ```
 */
export const silu = unary('silu')
/**
 * 1 / (1 + e^−x), element by element.
 *
 * @example
 * ```ts
 * console.log(sigmoid(tensor([0, 1000])).dataSync()) // → Float32Array(2) [ 0.5, 1 ]
 * ```
 */
export const sigmoid = unary('sigmoid')
/**
 * Hyperbolic tangent, element by element.
 *
 * @example
 * ```ts
 * console.log(tanh(tensor([0, 1000])).dataSync()) // → Float32Array(2) [ 0, 1 ]
 * ```
 */
export const tanh = unary('tanh')
/**
 * log(1 + e^x), element by element, without overflow.
 *
 * @example
 * ```ts
 * console.log(ops.softplus(tensor([-1000, 1000])).dataSync()) // → Float32Array(2) [ 0, 1000 ]
 * ```
 */
export const softplus = unary('softplus')

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.neg}. */
    neg(): Tensor<D>
    /** See {@link ops.exp}. */
    exp(): Tensor<D>
    /** See {@link ops.log}. */
    log(): Tensor<D>
    /** See {@link ops.sqrt}. */
    sqrt(): Tensor<D>
    /** See {@link ops.abs}. */
    abs(): Tensor<D>
    /** See {@link ops.square}. */
    square(): Tensor<D>
    /** See {@link ops.relu}. */
    relu(): Tensor<D>
    /** See {@link ops.gelu}. */
    gelu(): Tensor<D>
    /** See {@link ops.silu}. */
    silu(): Tensor<D>
    /** See {@link ops.sigmoid}. */
    sigmoid(): Tensor<D>
    /** See {@link ops.tanh}. */
    tanh(): Tensor<D>
    /** See {@link ops.softplus}. */
    softplus(): Tensor<D>
  }
}
asMethods({ neg, exp, log, sqrt, abs, square, relu, gelu, silu, sigmoid, tanh, softplus })
