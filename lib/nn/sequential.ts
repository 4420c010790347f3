import { callScope } from '../autograd/scope.js'
import { fail } from '../runtime/check.js'
import { show } from '../runtime/errors.js'
import { isTensor, type Tensor } from '../tensor/tensor.js'
import { Module } from './module.js'
import type { Parameter } from './parameter.js'

/** A module from a tensor to a tensor. */
export interface TensorModule extends Module {
  /** The result for x. */
  forward(x: Tensor): Tensor
}

/** What {@link Sequential} is made of: a module from a tensor to a tensor, or a function, such as `gelu`. */
export type SequentialLayer = TensorModule | ((x: Tensor) => Tensor)

/**
 * Layers one after another, as torch.nn.Sequential: parameters are named '0.weight', '2.weight', … by the place of their
 * layer. A function has a place, too, but no parameters: `gelu` stands for `nn.GELU()`.
 *
 * @example
 * ```ts
 * const mlp = new Sequential(new Linear(8, 32), gelu, new Linear(32, 1))
 * console.log(mlp.forward(randn([4, 8])).shape) // → [ 4, 1 ]
 * console.log(Object.keys(mlp.stateDict()).join()) // → 0.weight,0.bias,2.weight,2.bias
 * ```
 */
export class Sequential extends Module {
  /** In order. */
  readonly layers: readonly SequentialLayer[]

  /** Errors: OPTION for anything but modules with a `forward`, and functions. */
  constructor(...layers: readonly SequentialLayer[]) {
    super()
    for (const [i, layer] of layers.entries()) {
      const isLayer = layer instanceof Module ? 'forward' in layer : typeof layer === 'function'
      if (!isLayer)
        fail('OPTION', 'Sequential', `layer ${i} must be a module with forward, or a function, got ${show(layer)}`)
    }
    this.layers = Object.freeze([...layers])
  }

  /** Each layer on the result of the one before it. Errors: those of the layers; OPTION if one returns no tensor. */
  forward(x: Tensor): Tensor {
    return callScope(() =>
      this.layers.reduce((input, layer, i) => {
        const y: unknown = layer instanceof Module ? layer.forward(input) : layer(input)
        if (!isTensor(y)) fail('OPTION', 'Sequential.forward', `layer ${i} must return a Tensor, got ${show(y)}`)
        return y
      }, x),
    )
  }

  /** The modules, under their places. */
  protected override *children(): Iterable<[name: string, child: Parameter | Module]> {
    for (const [i, layer] of this.layers.entries()) if (layer instanceof Module) yield [String(i), layer]
  }
}
