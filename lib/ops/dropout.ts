import { record } from '../autograd.js'
import { checkNumber, fail } from '../check.js'
import { native } from '../native.js'
import { drawFrom, type Generator } from '../random.js'
import { checkFloat, handleOf, type Tensor, wrap } from '../tensor.js'

/** Zeroes each element with probability `p` in [0, 1) and divides the others by 1 − p. Any shape, f32 or f64. */
export function dropout(x: Tensor, p: number, generator?: Generator): Tensor {
  checkFloat('dropout', 'x', x)
  checkNumber('dropout', 'p', p, 0, 1)
  if (p === 1) fail('OPTION', 'dropout', 'p must be below 1, got 1')
  const { seed, step } = drawFrom('dropout', generator)
  const y = wrap(native.dropout(handleOf(x), p, seed, step), x)
  record({ op: 'dropout', inputs: [x], outputs: [y], backward: ([dy]) => [native.dropout(dy!, p, seed, step)] })
  return y
}
