import { checkInteger, checkNumber, checkOptions } from '../check.js'
import { ones, zeros } from '../create.js'
import { layerNorm } from '../ops/layernorm.js'
import { rmsNorm } from '../ops/rmsnorm.js'
import { withoutScope } from '../scope.js'
import type { Tensor } from '../tensor.js'
import { type LayerOptions, layerOptions } from './linear.js'
import { Module } from './module.js'
import { Parameter } from './parameter.js'

type Filler = typeof ones

/** A parameter [dim] of one value. */
function constant(fill: Filler, dim: number, options: LayerOptions): Parameter {
  return withoutScope(() => {
    using values = fill([dim], options)
    return new Parameter(values)
  })
}

/** y = x / max(‖x‖₂, 1e-12) · gamma · √D over the last axis; gamma [D] starts at 1. */
export class RMSNorm extends Module {
  gamma: Parameter

  constructor(dim: number, options?: LayerOptions) {
    super()
    const o = checkOptions<LayerOptions>('RMSNorm', options, ['dtype', 'device'])
    this.gamma = constant(ones, checkInteger('RMSNorm', 'dim', dim, 1), layerOptions('RMSNorm', o))
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.gamma)
  }
}

/** y = (x − mean) / √(var + eps) · weight + bias over the last axis; weight [D] starts at 1, bias [D] at 0. */
export class LayerNorm extends Module {
  weight: Parameter
  bias: Parameter
  readonly eps: number

  constructor(dim: number, options?: LayerOptions & { eps?: number }) {
    super()
    const o = checkOptions<LayerOptions & { eps: number }>('LayerNorm', options, ['eps', 'dtype', 'device'])
    checkInteger('LayerNorm', 'dim', dim, 1)
    this.eps = checkNumber('LayerNorm', 'eps', o.eps ?? 1e-5, 0)
    this.weight = constant(ones, dim, layerOptions('LayerNorm', o))
    this.bias = constant(zeros, dim, layerOptions('LayerNorm', o))
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, this.weight, this.bias, this.eps)
  }
}
