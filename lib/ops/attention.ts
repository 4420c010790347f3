import { record } from '../autograd/autograd.js'
import { callScope } from '../autograd/scope.js'
import { checkInteger, checkNumber, checkOptions, fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { where } from './compare.js'
import { reshape } from './reshape.js'
import { maskHandle } from './routing.js'

const alignments = ['last', 'first'] as const

/** Options of {@link attention}. */
export interface AttentionOptions {
  /** A divisor of D. */
  heads: number
  /** A divisor of `heads`, by default as many: head h uses the keys and values of head ⌊h · kvHeads / heads⌋. */
  kvHeads?: number
  /**
   * true or 'last': query i sees keys 0 … i + Nk − Nq, so the last query sees all, as for the next tokens of a sequence.
   * 'first': keys 0 … i, as `is_causal` of PyTorch. They differ if Nk ≠ Nq. false: all keys. Default true.
   */
  causal?: boolean | (typeof alignments)[number]
  /** Factor of the scores, default 1/√(D/heads). */
  scale?: number
  /** [B, Nk], of any dtype: no query sees a key where it is 0, even if that is NaN. A query that sees none gets zeros. */
  mask?: Tensor | null
}

interface Sizes {
  heads: number
  kvHeads: number
  scale: number
  visible: number
}

/** How many keys the first query sees; each of the others sees one more, up to all. */
function visibleKeys(op: string, causal: unknown, Nq: number, Nk: number): number {
  if (causal === 'first') return 1
  if (causal === false) return Math.max(Nk, 1)
  if (causal !== true && causal !== 'last')
    fail('OPTION', op, `causal must be true, false or one of ${alignments.join(', ')}, got ${show(causal)}`)
  if (Nk < Nq)
    fail(
      'SHAPE',
      op,
      `causal attention needs at least as many keys as queries, got ${Nk} and ${Nq}; see causal 'first'`,
    )
  return Math.max(Math.min(Nk - Nq + 1, Nk), 1)
}

/**
 * Multi-head scaled dot-product attention (Vaswani et al., arXiv 1706.03762, §3.2), with grouped queries if there are
 * fewer heads of keys (Ainslie et al., arXiv 2305.13245); as torch.nn.functional.scaled_dot_product_attention, whose
 * `is_causal` is `causal: 'first'`. q [B, Nq, D], D split into `heads` equal parts, k and v
 * [B, Nk, D · kvHeads / heads] → [B, Nq, D]; all f32 or f64. No N×N matrix is stored (Dao et al., arXiv 2205.14135).
 * Errors: SHAPE, DTYPE, DEVICE, OPTION; NON_FINITE for a NaN in the mask.
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
  const known = ['heads', 'kvHeads', 'causal', 'scale', 'mask'] as const
  const given = checkOptions<AttentionOptions>(op, options, known)
  const heads = checkInteger(op, 'heads', given.heads, 1, 2 ** 20)
  const kvHeads = checkInteger(op, 'kvHeads', given.kvHeads ?? heads, 1, 2 ** 20)
  const [B, Nq, D] = q.shape
  if (D % heads !== 0) fail('SHAPE', op, `the width ${D} must be a multiple of ${heads} heads`)
  if (heads % kvHeads !== 0) fail('OPTION', op, `heads must be a multiple of kvHeads, got ${heads} and ${kvHeads}`)
  const scale = given.scale === undefined ? 1 / Math.sqrt(D / heads) : checkNumber(op, 'scale', given.scale)
  checkTensor(op, 'k', k)
  const Nk = k.shape[1]
  checkTensor(op, 'k', k, { shape: [B, Nk, (D / heads) * kvHeads], dtype: q.dtype, device: q.device })
  checkTensor(op, 'v', v, k)
  const sizes = { heads, kvHeads, scale, visible: visibleKeys(op, given.causal ?? true, Nq, Nk) }
  const handle = maskHandle(op, given.mask, B, Nk, q.device)
  if (handle === null) return fused(q, k, v, null, sizes)
  const mask = wrap(handle, { shape: [B, Nk], dtype: 'i32', device: q.device })
  try {
    return callScope(() => {
      const shown = reshape(mask, [B, Nk, 1])
      return fused(q, where(shown, k, 0), where(shown, v, 0), mask, sizes)
    })
  } finally {
    mask.dispose()
  }
}

function fused<D extends DType>(q: Tensor<D>, k: Tensor, v: Tensor, mask: Tensor | null, sizes: Sizes): Tensor<D> {
  const made = native.attention({
    q: handleOf(q),
    k: handleOf(k),
    v: handleOf(v),
    mask: mask && handleOf(mask),
    ...sizes,
  })
  const y = wrap(made.y, q)
  record({
    op: 'attention',
    inputs: [q, k, v],
    outputs: [y],
    saved: [q, k, v, y, made.lse, ...(mask ? [mask] : [])],
    backward: ([dy], [q, k, v, y, lse, mask = null]) => {
      const { dq, dk, dv } = native.attentionBackward({ dy: dy!, q, k, v, mask, y, lse, ...sizes })
      return [dq, dk, dv]
    },
  })
  return y
}
