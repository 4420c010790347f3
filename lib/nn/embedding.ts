import { checkInteger, checkOptions } from '../check.js'
import { randn } from '../create.js'
import { embedding } from '../ops/embedding.js'
import { withoutScope } from '../scope.js'
import type { Tensor } from '../tensor.js'
import { type LayerOptions, layerOptions } from './linear.js'
import { Module } from './module.js'
import { Parameter } from './parameter.js'

/** Rows of weight [V, D], standard normal at the start, at i32 indices [...] → [..., D]. */
export class Embedding extends Module {
  weight: Parameter

  constructor(numEmbeddings: number, dim: number, options?: LayerOptions) {
    super()
    const o = checkOptions<LayerOptions>('Embedding', options, ['dtype', 'device'])
    checkInteger('Embedding', 'numEmbeddings', numEmbeddings, 1)
    checkInteger('Embedding', 'dim', dim, 1)
    this.weight = withoutScope(() => {
      using values = randn([numEmbeddings, dim], layerOptions('Embedding', o))
      return new Parameter(values)
    })
  }

  forward(index: Tensor): Tensor {
    return embedding(this.weight, index)
  }
}
