import { checkBoolean, checkInteger, checkOptions } from '../check.js'
import { uniform } from '../create.js'
import { checkDevice, type Device, getDefaultDevice } from '../device.js'
import { type ComputeDType, checkComputeDType, checkDType, type DType } from '../dtype.js'
import { linear } from '../ops/linear.js'
import { allOrNone } from '../scope.js'
import type { Tensor } from '../tensor.js'
import { Module } from './module.js'
import { newParameter, type Parameter } from './parameter.js'

/** Options of every layer with parameters. */
export interface LayerOptions {
  /** Of parameters, inputs and outputs. Default 'f32'. */
  dtype?: 'f32' | 'f64'
  /** Default: that of {@link setDefaultDevice}, at first 'cpu'. */
  device?: Device
}

/** Options of a layer with matrix products. */
export interface ProductLayerOptions extends LayerOptions {
  /** 'bf16' or 'f16' rounds the operands of the products; parameters, gradients and sums stay f32. Default: dtype. */
  computeDtype?: ComputeDType
}

/** Options of {@link Linear}. */
export interface LinearLayerOptions extends ProductLayerOptions {
  /** Default true. */
  bias?: boolean
}

/** dtype and device of a layer, checked. */
export function layerOptions(op: string, o: LayerOptions): Required<LayerOptions> {
  return {
    dtype: checkDType(op, o.dtype ?? 'f32', ['f32', 'f64']) as 'f32' | 'f64',
    device: checkDevice(op, o.device ?? getDefaultDevice()),
  }
}

export function productLayerOptions(op: string, o: ProductLayerOptions): Required<ProductLayerOptions> {
  const layer = layerOptions(op, o)
  return { ...layer, computeDtype: checkComputeDType(op, o.computeDtype, layer.dtype) }
}

export const productLayerNames = ['dtype', 'device', 'computeDtype'] as const

/** A parameter drawn uniformly from ±bound. */
export const uniformParameter = (shape: readonly number[], bound: number, { dtype, device }: LayerOptions): Parameter =>
  newParameter(() => uniform(shape, -bound, bound, { dtype, device }))

/**
 * x [..., in] · weightᵀ + bias → [..., out], by {@link linear}.
 *
 * @example
 * ```ts
 * const head = new Linear(32, 96)
 * console.log(head.forward(randn([2, 16, 32])).shape) // → [ 2, 16, 96 ]
 * ```
 */
export class Linear extends Module {
  /** What the operands of the product are rounded to. */
  readonly computeDtype: ComputeDType
  /** [out, in], uniform in ±1/√in at the start, as in PyTorch. */
  weight: Parameter
  /** [out], likewise; null without bias. */
  bias: Parameter | null

  /** Errors: OPTION, DTYPE, DEVICE. */
  constructor(inFeatures: number, outFeatures: number, options?: LinearLayerOptions) {
    super()
    const op = 'Linear'
    const o = checkOptions<LinearLayerOptions>(op, options, ['bias', ...productLayerNames])
    checkInteger(op, 'inFeatures', inFeatures, 1)
    checkInteger(op, 'outFeatures', outFeatures, 1)
    const bias = checkBoolean(op, 'bias', o.bias ?? true)
    const bound = 1 / Math.sqrt(inFeatures)
    const layer = productLayerOptions(op, o)
    this.computeDtype = layer.computeDtype
    ;[this.weight, this.bias] = allOrNone(() => [
      uniformParameter([outFeatures, inFeatures], bound, layer),
      bias ? uniformParameter([outFeatures], bound, layer) : null,
    ])
  }

  /** x [..., in] → [..., out]. Errors: SHAPE, DTYPE, DEVICE. */
  forward<D extends DType>(x: Tensor<D>): Tensor<D> {
    return linear(x, this.weight, this.bias, { computeDtype: this.computeDtype })
  }
}
