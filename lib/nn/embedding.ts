import { embedding } from '../ops/embedding.js'
import { checkInteger } from '../runtime/check.js'
import { randn } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'
import { type LayerOptions, readLayerOptions } from './linear.js'
import { Module } from './module.js'
import { newParameter, type Parameter } from './parameter.js'

/**
 * A row of D numbers for each of V tokens: i32 indices [...] → [..., D], by {@link embedding}.
 *
 * @example
 * ```ts
 * const table = new Embedding(256, 32)
 * console.log(table.forward(tensor(Int32Array.of(104, 105))).shape) // → [ 2, 32 ]
 * ```
 */
export class Embedding extends Module {
  /** [V, D], standard normal at the start, as in PyTorch. */
  weight: Parameter

  /** `numEmbeddings` is V, `dim` is D. Errors: OPTION, DTYPE, DEVICE. */
  constructor(numEmbeddings: number, dim: number, options?: LayerOptions) {
    super()
    const layer = readLayerOptions('Embedding', options)
    checkInteger('Embedding', 'numEmbeddings', numEmbeddings, 1)
    checkInteger('Embedding', 'dim', dim, 1)
    this.weight = newParameter(() => randn([numEmbeddings, dim], layer))
  }

  /** Errors: DTYPE unless `index` is i32, OPTION if an index is outside of [0, V). */
  forward(index: Tensor): Tensor {
    return embedding(this.weight, index)
  }
}
