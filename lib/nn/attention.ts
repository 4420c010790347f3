import { checkBoolean, checkInteger, checkOptions, fail } from '../check.js'
import { attention } from '../ops/attention.js'
import type { Tensor } from '../tensor.js'
import { Linear, type ProductLayerOptions, productLayerNames, productLayerOptions } from './linear.js'
import { Module } from './module.js'

export interface AttentionLayerOptions extends ProductLayerOptions {
  heads?: number
  bias?: boolean
}

/**
 * Multi-head self-attention in which a token sees itself and what is before it: x [B, N, D] → [B, N, D].
 *
 * @example
 * const attend = new CausalSelfAttention(128, { heads: 4 })
 */
export class CausalSelfAttention extends Module {
  readonly heads: number
  query: Linear
  key: Linear
  value: Linear
  out: Linear

  constructor(dim: number, options?: AttentionLayerOptions) {
    super()
    const op = 'CausalSelfAttention'
    const o = checkOptions<AttentionLayerOptions>(op, options, ['heads', 'bias', ...productLayerNames])
    checkInteger(op, 'dim', dim, 1)
    this.heads = checkInteger(op, 'heads', o.heads ?? 8, 1)
    if (dim % this.heads !== 0) fail('OPTION', op, `dim must be a multiple of heads, got ${dim} and ${this.heads}`)
    const layer = { ...productLayerOptions(op, o), bias: checkBoolean(op, 'bias', o.bias ?? false) }
    this.query = new Linear(dim, dim, layer)
    this.key = new Linear(dim, dim, layer)
    this.value = new Linear(dim, dim, layer)
    this.out = new Linear(dim, dim, layer)
  }

  forward(x: Tensor): Tensor {
    const y = attention(this.query.forward(x), this.key.forward(x), this.value.forward(x), { heads: this.heads })
    return this.out.forward(y)
  }
}
