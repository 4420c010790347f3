import { record } from '../autograd.js'
import { checkBoolean, checkInteger, checkNumber, checkOptions, fail, showShape } from '../check.js'
import type { DType } from '../dtype.js'
import { native } from '../native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor.js'

/** Options of {@link attention}. */
export interface AttentionOptions {
  /** A divisor of D. */
  heads: number
  /** Query i sees keys 0 … i + Nk − Nq. Default true. */
  causal?: boolean
  /** Factor of the scores, default 1/√(D/heads). */
  scale?: number
}

/**
 * Multi-head scaled dot-product attention (Vaswani et al., arXiv 1706.03762, §3.2). q [B, Nq, D], k and v [B, Nk, D],
 * D split into `heads` equal parts → [B, Nq, D]; all f32 or f64. No N×N matrix is stored (Dao et al., arXiv 2205.14135).
 * Errors: SHAPE, DTYPE, DEVICE, OPTION.
 *
 * @example
 * ```ts
 * const x = randn([2, 10, 32])
 * console.log(attention(x, x, x, { heads: 4 }).shape) // → [ 2, 10, 32 ]
 * ```
 */
export function attention<D extends DType>(q: Tensor<D>, k: Tensor, v: Tensor, options: AttentionOptions): Tensor<D> {
  const op = 'attention'
  checkFloat(op, 'q', q)
  if (q.shape.length !== 3) fail('SHAPE', op, `q must be [B, N, D], got ${showShape(q.shape)}`)
  const { heads, causal = true, scale } = checkOptions<AttentionOptions>(op, options, ['heads', 'causal', 'scale'])
  checkInteger(op, 'heads', heads, 1, 2 ** 20)
  checkBoolean(op, 'causal', causal)
  const [B, Nq, D] = q.shape
  if (D % heads! !== 0) fail('SHAPE', op, `the width ${D} must be a multiple of ${heads} heads`)
  const factor = scale === undefined ? 1 / Math.sqrt(D / heads!) : checkNumber(op, 'scale', scale)
  checkTensor(op, 'k', k)
  const Nk = k.shape[1]
  checkTensor(op, 'k', k, { shape: [B, Nk, D], dtype: q.dtype, device: q.device })
  checkTensor(op, 'v', v, k)
  if (causal && Nk < Nq)
    fail('SHAPE', op, `causal attention needs at least as many keys as queries, got ${Nk} and ${Nq}`)
  const sizes = { heads: heads!, scale: factor, causal }
  const made = native.attention({ q: handleOf(q), k: handleOf(k), v: handleOf(v), ...sizes })
  const y = wrap(made.y, q)
  record({
    op,
    inputs: [q, k, v],
    outputs: [y],
    saved: [q, k, v, y, made.lse],
    backward: ([dy], [q, k, v, y, lse]) => {
      const { dq, dk, dv } = native.attentionBackward({ dy: dy!, q, k, v, y, lse, ...sizes })
      return [dq, dk, dv]
    },
  })
  return y
}
