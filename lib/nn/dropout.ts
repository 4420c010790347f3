import { checkNumber, fail } from '../check.js'
import { dropout } from '../ops/dropout.js'
import type { Tensor } from '../tensor.js'
import { Module } from './module.js'

/** Zeroes elements with probability `p` and scales the others by 1/(1 − p) in training; the identity in evaluation. */
export class Dropout extends Module {
  readonly p: number

  constructor(p = 0.5) {
    super()
    this.p = checkNumber('Dropout', 'p', p, 0, 1)
    if (p === 1) fail('OPTION', 'Dropout', 'p must be below 1, got 1')
  }

  forward(x: Tensor): Tensor {
    return this.training && this.p > 0 ? dropout(x, this.p) : x
  }
}
