import { allOrNone } from '../autograd/scope.js'
import { layerNorm } from '../ops/layernorm.js'
import { rmsNorm } from '../ops/rmsnorm.js'
import { checkInteger } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { number, type OptionsOf, reader } from '../runtime/options.js'
import { ones, zeros } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'
import { type LayerOptions, layerOptions, readLayerOptions } from './linear.js'
import { Module } from './module.js'
import { newParameter, type Parameter } from './parameter.js'

type Filler = typeof ones

/** A parameter [dim] of one value. */
const constant = (fill: Filler, dim: number, options: LayerOptions): Parameter =>
  newParameter(() => fill([dim], options))

/**
 * y = x / max(‖x‖₂, 1e-12) · gamma · √D over the last axis, by {@link rmsNorm}.
 *
 * @example
 * ```ts
 * const norm = new RMSNorm(4)
 * console.log(norm.forward(tensor([[3, 3, 3, 3]])).dataSync()) // → Float32Array(4) [ 1, 1, 1, 1 ]
 * ```
 */
export class RMSNorm extends Module {
  /** [D], ones at the start. */
  gamma: Parameter

  /** `dim` is D. Errors: OPTION, DTYPE, DEVICE. */
  constructor(dim: number, options?: LayerOptions) {
    super()
    const layer = readLayerOptions('RMSNorm', options)
    this.gamma = constant(ones, checkInteger('RMSNorm', 'dim', dim, 1), layer)
  }

  /** x [..., D] → [..., D]. Errors: SHAPE, DTYPE, DEVICE. */
  forward<D extends DType>(x: Tensor<D>): Tensor<D> {
    return rmsNorm(x, this.gamma)
  }
}

const normOptions = {
  /** Added to the variance. Default 1e-5. */
  eps: number({ min: 0, default: 1e-5 }),
}

/** Options of {@link LayerNorm}. */
export interface LayerNormOptions extends LayerOptions, OptionsOf<typeof normOptions> {}

const readNormOptions = reader(normOptions, layerOptions)

/**
 * y = (x − mean) / √(var + eps) · weight + bias over the last axis, by {@link layerNorm}.
 *
 * @example
 * ```ts
 * const norm = new LayerNorm(2, { eps: 0 })
 * console.log(norm.forward(tensor([[3, 5]])).dataSync()) // → Float32Array(2) [ -1, 1 ]
 * ```
 */
export class LayerNorm extends Module {
  /** [D], ones at the start. */
  weight: Parameter
  /** [D], zeros at the start. */
  bias: Parameter
  /** Added to the variance. */
  readonly eps: number

  /** `dim` is D. Errors: OPTION, DTYPE, DEVICE. */
  constructor(dim: number, options?: LayerNormOptions) {
    super()
    const { eps, ...layer } = readNormOptions('LayerNorm', options)
    checkInteger('LayerNorm', 'dim', dim, 1)
    this.eps = eps
    ;[this.weight, this.bias] = allOrNone(() => [constant(ones, dim, layer), constant(zeros, dim, layer)])
  }

  /** x [..., D] → [..., D]. Errors: SHAPE, DTYPE, DEVICE. */
  forward<D extends DType>(x: Tensor<D>): Tensor<D> {
    return layerNorm(x, this.weight, this.bias, this.eps)
  }
}
