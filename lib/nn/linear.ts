import { checkBoolean, checkInteger, checkOptions } from '../check.js'
import { uniform } from '../create.js'
import { checkDevice, type Device, getDefaultDevice } from '../device.js'
import { checkDType } from '../dtype.js'
import { linear } from '../ops/linear.js'
import { withoutScope } from '../scope.js'
import type { Tensor } from '../tensor.js'
import { Module } from './module.js'
import { Parameter } from './parameter.js'

export interface LayerOptions {
  dtype?: 'f32' | 'f64'
  device?: Device
}

/** dtype and device of a layer, checked. */
export function layerOptions(op: string, o: LayerOptions): Required<LayerOptions> {
  return {
    dtype: checkDType(op, o.dtype ?? 'f32', ['f32', 'f64']) as 'f32' | 'f64',
    device: checkDevice(op, o.device ?? getDefaultDevice()),
  }
}

/** A parameter drawn uniformly from ±bound. */
export function uniformParameter(shape: readonly number[], bound: number, options: LayerOptions): Parameter {
  return withoutScope(() => {
    using values = uniform(shape, -bound, bound, options)
    return new Parameter(values)
  })
}

/**
 * x [..., in] · weightᵀ + bias → [..., out]; weight [out, in] and bias [out] start uniform in ±1/√in, as in PyTorch.
 *
 * @example
 * const head = new Linear(128, 96)
 */
export class Linear extends Module {
  weight: Parameter
  bias: Parameter | null

  constructor(inFeatures: number, outFeatures: number, options?: LayerOptions & { bias?: boolean }) {
    super()
    const op = 'Linear'
    const o = checkOptions<LayerOptions & { bias: boolean }>(op, options, ['bias', 'dtype', 'device'])
    checkInteger(op, 'inFeatures', inFeatures, 1)
    checkInteger(op, 'outFeatures', outFeatures, 1)
    const bias = checkBoolean(op, 'bias', o.bias ?? true)
    const bound = 1 / Math.sqrt(inFeatures)
    this.weight = uniformParameter([outFeatures, inFeatures], bound, layerOptions(op, o))
    this.bias = bias ? uniformParameter([outFeatures], bound, layerOptions(op, o)) : null
  }

  forward(x: Tensor): Tensor {
    return linear(x, this.weight, this.bias)
  }
}
