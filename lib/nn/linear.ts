import { allOrNone } from '../autograd/scope.js'
import { linear } from '../ops/linear.js'
import { checkInteger } from '../runtime/check.js'
import { checkDevice, type Device, getDefaultDevice } from '../runtime/device.js'
import { type ComputeDType, checkComputeDType, checkDType, type DType, type FloatDType } from '../runtime/dtype.js'
import { boolean, type Option, type OptionsOf, reader } from '../runtime/options.js'
import { uniformRows } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'
import { Module } from './module.js'
import { newParameter, type Parameter } from './parameter.js'

const floatDType: Option<FloatDType> = {
  default: 'f32',
  check: (op, _name, value) => checkDType(op, value, ['f32', 'f64']) as FloatDType,
}

const deviceOption: Option<Device> = { default: getDefaultDevice, check: (op, _name, value) => checkDevice(op, value) }

/** After `dtype`. */
export const computeDType: Option<ComputeDType> = {
  default: ({ dtype }) => dtype as FloatDType,
  check: (op, _name, value, { dtype }) => checkComputeDType(op, value, dtype as FloatDType),
}

/** Of every layer with parameters. */
export const layerOptions = {
  /** Of parameters, inputs and outputs. Default 'f32'. */
  dtype: floatDType,
  /** Default: that of {@link setDefaultDevice}, at first 'cpu'. */
  device: deviceOption,
}

/** Options of every layer with parameters. */
export interface LayerOptions extends OptionsOf<typeof layerOptions> {}

export const readLayerOptions = reader(layerOptions)

/** Of a layer with GEMMs, after those of every layer. */
export const gemmOptions = {
  /** 'bf16', 'bf16x3' or 'f16' rounds the operands of the GEMMs; parameters, gradients and sums stay f32. Default: dtype. */
  computeDtype: computeDType,
}

/** Options of a layer with GEMMs. */
export interface ProductLayerOptions extends LayerOptions, OptionsOf<typeof gemmOptions> {}

const linearOptions = {
  /** Default true. */
  bias: boolean({ default: true }),
}

/** Options of {@link Linear}. */
export interface LinearLayerOptions extends ProductLayerOptions, OptionsOf<typeof linearOptions> {}

const readOptions = reader(linearOptions, layerOptions, gemmOptions)

/** A parameter sampled uniformly from ±bound: the rows from `first` on of one that has more. */
export const uniformParameter = (
  shape: readonly number[],
  bound: number,
  { dtype, device }: LayerOptions,
  first = 0,
): Parameter => newParameter(() => uniformRows(shape, first, bound, { dtype, device }))

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
  /** What the operands of the GEMM are rounded to. */
  readonly computeDtype: ComputeDType
  /** [out, in], uniform in ±1/√in at the start, as in PyTorch. */
  weight: Parameter
  /** [out], likewise; null without bias. */
  bias: Parameter | null

  /** Errors: OPTION, DTYPE, DEVICE. */
  constructor(inFeatures: number, outFeatures: number, options?: LinearLayerOptions) {
    super()
    const op = 'Linear'
    const layer = readOptions(op, options)
    checkInteger(op, 'inFeatures', inFeatures, 1)
    checkInteger(op, 'outFeatures', outFeatures, 1)
    const bound = 1 / Math.sqrt(inFeatures)
    this.computeDtype = layer.computeDtype
    ;[this.weight, this.bias] = allOrNone(() => [
      uniformParameter([outFeatures, inFeatures], bound, layer),
      layer.bias ? uniformParameter([outFeatures], bound, layer) : null,
    ])
  }

  protected override gemmWeights(): readonly Parameter[] {
    return [this.weight]
  }

  /** x [..., in] → [..., out]. Errors: SHAPE, DTYPE, DEVICE. */
  forward<D extends DType>(x: Tensor<D>): Tensor<D> {
    return linear(x, this.weight, this.bias, { computeDtype: this.computeDtype })
  }
}

/** The logits of a router. {@link Module.freeze} leaves it as it is: rounded, it would choose other experts. */
export class RouterLinear extends Linear {
  protected override gemmWeights(): readonly Parameter[] {
    return []
  }
}
