import { record } from '../autograd.js'
import { native } from '../native.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor.js'

const kinds = native.unaryKinds()

function unary(op: string): (x: Tensor) => Tensor {
  const kind = kinds.indexOf(op)
  return (x) => {
    checkFloat(op, 'x', x)
    const y = wrap(native.unary(handleOf(x), kind), x)
    record({
      op,
      inputs: [x],
      outputs: [y],
      saved: [x],
      backward: ([dy], [xv]) => [native.unaryBackward(xv, dy!, kind)],
    })
    return y
  }
}

// Element by element, any shape, f32 or f64.
export const neg = unary('neg')
export const exp = unary('exp')
/** Natural logarithm. */
export const log = unary('log')
export const sqrt = unary('sqrt')
/** Derivative 0 at 0. */
export const abs = unary('abs')
export const square = unary('square')
/** max(x, 0), derivative 0 at 0. */
export const relu = unary('relu')
/** The exact form z Φ(z) (Hendrycks and Gimpel, arXiv 1606.08415), not the tanh approximation. */
export const gelu = unary('gelu')
/** x · sigmoid(x). */
export const silu = unary('silu')
export const sigmoid = unary('sigmoid')
export const tanh = unary('tanh')
