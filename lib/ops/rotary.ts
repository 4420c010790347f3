import { record } from '../autograd/autograd.js'
import { checkInteger, checkNumber, checkOptions, fail, showShape, sizeOf } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

/** Options of {@link rotary}. */
export interface RotaryOptions {
  /** D is split into this many equal parts, of an even width. */
  heads: number
  /** Of the angles. Default 10000. */
  base?: number
  /** i32 [B] for x [B, N, D]: where the first token of each sequence is. Default: 0. */
  position?: Tensor | null
}

/**
 * Rotary positions (Su et al., arXiv 2104.09864, §3.2.2): of each head of the token at n, the numbers i and i + d/2 are rotated
 * as a pair by the angle n · base^(−2i/d), for d = D/heads. These are the pairs of Llama in transformers (`rotate_half`);
 * the paper's are neighbours. x [..., N, D], f32 or f64 → the same shape. Errors: SHAPE, DTYPE, OPTION.
 *
 * @example
 * ```ts
 * console.log(ops.rotary(ones([2, 2]), { heads: 1 }))
 * // → tensor([[ 1.0000,  1.0000],
 * // →         [-0.3012,  1.3818]], [2, 2], f32, cpu)
 * ```
 */
export function rotary<D extends DType>(x: Tensor<D>, options: RotaryOptions): Tensor<D> {
  const op = 'rotary'
  checkFloat(op, 'x', x)
  const given = checkOptions<RotaryOptions>(op, options, ['heads', 'base', 'position'])
  const heads = checkInteger(op, 'heads', given.heads, 1, 2 ** 20)
  const base = checkNumber(op, 'base', given.base ?? 10000)
  if (!(base > 0)) fail('OPTION', op, `base must be above 0, got ${base}`)
  if (x.shape.length < 2) fail('SHAPE', op, `x must be [..., N, D], got ${showShape(x.shape)}`)
  const width = x.shape[x.shape.length - 1]
  if (width % (2 * heads) !== 0)
    fail('SHAPE', op, `the width ${width} must be a multiple of ${2 * heads}: ${heads} heads, each of an even width`)
  const sequences = [sizeOf(x.shape.slice(0, -2))]
  const position =
    given.position && checkTensor(op, 'position', given.position, { shape: sequences, dtype: 'i32', device: x.device })
  const turned = (x: Handle, position: Handle | null, back: boolean): Handle =>
    native.rotary({ x, position, heads, base, back })
  const y = wrap(turned(handleOf(x), position ? handleOf(position) : null, false), x)
  record({
    op,
    inputs: [x],
    outputs: [y],
    saved: position ? [position] : [],
    backward: ([dy], [position = null]) => [turned(dy!, position, true)],
  })
  return y
}
