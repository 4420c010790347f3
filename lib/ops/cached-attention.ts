import { willRecord } from '../autograd/autograd.js'
import { checkInteger, checkNumber, checkOptions, fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

/** Keys and values of the tokens before. A program makes them with {@link Attention.cache}. */
export interface AttentionCache {
  /** Of S slots, each for M tokens of one sequence: [S, M, D · kvHeads / heads]. */
  keys: Tensor
  /** As `keys`. */
  values: Tensor
}

/** Where the tokens of a {@link cachedAttention} are in the cache. */
export interface CachePlace {
  /** i32 [B]: how many tokens of the sequence the cache has, which is the position of its next. */
  position: Tensor
  /** i32 [B]: the slot of each sequence, no two the same. Default: 0 … B − 1. */
  slot?: Tensor | null
}

/** Options of {@link cachedAttention}. */
export interface CachedAttentionOptions extends AttentionCache, CachePlace {
  /** A divisor of D. */
  heads: number
  /** A divisor of `heads`, by default as many. */
  kvHeads?: number
  /** Factor of the scores, default 1/√(D/heads). */
  scale?: number
}

/**
 * Causal {@link attention} of the next N tokens of B sequences, for generation: writes k and v [B, N, D · kvHeads / heads]
 * into the cache, in place, after the tokens that it has. Query i of q [B, N, D] sees those, and the new ones up to i →
 * [B, N, D]; all f32 or f64. It has no gradient.
 *
 * Errors: SHAPE, DTYPE, DEVICE; OPTION for a place outside of the cache, on a GPU by the next operation that waits for it;
 * UNSUPPORTED where a gradient is recorded.
 *
 * @example
 * ```ts
 * const [keys, values] = [zeros([1, 8, 4]), zeros([1, 8, 4])]
 * const x = randn([1, 3, 4])
 * const whole = attention(x, x, x, { heads: 2 })
 * const next = (n: number) => {
 *   const token = x.slice(1, n, n + 1)
 *   return ops.cachedAttention(token, token, token, { heads: 2, keys, values, position: tensor(Int32Array.of(n)) })
 * }
 * const [, , last] = [0, 1, 2].map(next)
 * console.log(last.sub(whole.slice(1, 2, 3)).abs().sum().item() < 1e-5) // → true
 * ```
 */
export function cachedAttention<D extends DType>(
  q: Tensor<D>,
  k: Tensor,
  v: Tensor,
  options: CachedAttentionOptions,
): Tensor<D> {
  const op = 'cachedAttention'
  checkFloat(op, 'q', q)
  if (q.shape.length !== 3) fail('SHAPE', op, `q must be [B, N, D], got ${showShape(q.shape)}`)
  const known = ['heads', 'kvHeads', 'scale', 'keys', 'values', 'position', 'slot'] as const
  const given = checkOptions<CachedAttentionOptions>(op, options, known)
  const heads = checkInteger(op, 'heads', given.heads, 1, 2 ** 20)
  const kvHeads = checkInteger(op, 'kvHeads', given.kvHeads ?? heads, 1, 2 ** 20)
  const [B, N, D] = q.shape
  if (D % heads !== 0) fail('SHAPE', op, `the width ${D} must be a multiple of ${heads} heads`)
  if (heads % kvHeads !== 0) fail('OPTION', op, `heads must be a multiple of kvHeads, got ${heads} and ${kvHeads}`)
  const scale = given.scale === undefined ? 1 / Math.sqrt(D / heads) : checkNumber(op, 'scale', given.scale)
  const width = (D / heads) * kvHeads
  const { dtype, device } = q
  checkTensor(op, 'k', k, { shape: [B, N, width], dtype, device })
  checkTensor(op, 'v', v, k)
  const keys = checkTensor(op, 'keys', given.keys)
  const [S, M] = keys.shape
  checkTensor(op, 'keys', keys, { shape: [S, M, width], dtype, device })
  const values = checkTensor(op, 'values', given.values, keys)
  const places = { shape: [B], dtype: 'i32', device } as const
  const position = checkTensor(op, 'position', given.position, places)
  const slot = given.slot ? checkTensor(op, 'slot', given.slot, places) : null
  if (M < N) fail('SHAPE', op, `the cache has ${M} rows per slot, too few for ${N} tokens`)
  if (!slot && S < B) fail('SHAPE', op, `the cache has ${S} slots, too few for ${B} sequences`)
  if (willRecord(q, k, v)) fail('UNSUPPORTED', op, 'it has no gradient: call it within noGrad')
  const y = native.cachedAttention({
    q: handleOf(q),
    k: handleOf(k),
    v: handleOf(v),
    position: handleOf(position),
    slot: slot && handleOf(slot),
    keys: handleOf(keys),
    values: handleOf(values),
    heads,
    kvHeads,
    scale,
  })
  return wrap(y, q)
}
