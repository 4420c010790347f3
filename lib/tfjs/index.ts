/**
 * The layer for TensorFlow.js 4: `import { moeLayer } from 'st-moe/tfjs'`. Needs `@tensorflow/tfjs`, an optional peer
 * dependency, with any of its backends.
 *
 * @packageDocumentation
 */

import '../runtime/symbol-dispose.js' // before the classes
import * as tf from '@tensorflow/tfjs'
import { noGrad, scope, withoutScope } from '../autograd/scope.js'
import { MoE } from '../nn/moe.js'
import type { MoEForwardOptions, MoEOptions } from '../nn/moe-options.js'
import type { Parameter } from '../nn/parameter.js'
import type { GradHandle } from '../nn/with-grad.js'
import { fail, showShape } from '../runtime/check.js'
import { show } from '../runtime/errors.js'
import { tensor } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'

type Config = NonNullable<ConstructorParameters<typeof tf.layers.Layer>[0]>

/** What every layer of TensorFlow.js takes. */
const ofLayer = [
  'inputShape',
  'batchInputShape',
  'batchSize',
  'dtype',
  'name',
  'trainable',
  'weights',
  'inputDType',
] as const
const isOfLayer = (name: string): boolean => (ofLayer as readonly string[]).includes(name)

/** The options of {@link MoE} besides `dim`, which is the last size of the input, and the arguments of every layer. */
export interface MoELayerConfig
  extends Omit<MoEOptions, 'dim' | 'dtype' | 'experts'>,
    Pick<Config, (typeof ofLayer)[number]> {}

const parts = (config: object, wanted: boolean): Record<string, unknown> =>
  Object.fromEntries(Object.entries(config).filter(([name]) => isOfLayer(name) === wanted))

function checkedConfig(config: MoELayerConfig): MoELayerConfig {
  if (typeof config !== 'object' || config === null)
    fail('OPTION', 'moeLayer', `config must be an object, got ${show(config)}`)
  for (const name of ['dim', 'experts'])
    if (Object.hasOwn(config, name)) fail('OPTION', 'moeLayer', `${name} cannot be set: ${reasons[name as 'dim']}`)
  return config
}

const reasons = {
  dim: 'it is the last size of the input',
  experts: 'custom experts cannot be saved with a model of TensorFlow.js',
}

/** TensorFlow.js gives the shape of a single input as such, those of several as a list. */
const shapesOf = (shapes: tf.Shape | tf.Shape[]): tf.Shape[] =>
  (Array.isArray(shapes[0]) ? shapes : [shapes]) as tf.Shape[]

/**
 * Whether a mask reaches the layer in a model. TensorFlow.js 4 hands a mask to all later layers, also where a layer between
 * has ended it.
 */
function getsMask(layer: tf.layers.Layer): boolean {
  const before = layer.inboundNodes.flatMap((node) => node.inboundLayers.slice(0, 1))
  return before.some(
    (each) => each.computeMask !== tf.layers.Layer.prototype.computeMask || (each.supportsMasking && getsMask(each)),
  )
}

/** 1 for the tokens that each mask keeps; null without a mask. */
function bothMasks(...masks: (tf.Tensor | null | undefined)[]): tf.Tensor | null {
  const numbers = masks.flatMap((mask) => (mask ? [mask.cast('float32')] : []))
  return numbers.length > 0 ? numbers.reduce((a, b) => a.mul(b)) : null
}

/**
 * {@link MoE} as a layer of TensorFlow.js: [batch, tokens, dim] → the same shape, computed by st-moe, trained by the
 * optimizers of TensorFlow.js and saved with its models. The weights are variables of TensorFlow.js under the names of
 * the parameters of MoE. The auxiliary loss is added to the loss of the model in `fit`; {@link MoELayer.auxLoss} is for
 * loops of your own. Importing the file registers the class, so that saved models load.
 *
 * Padding gets no expert: the layer takes the mask of layers before it, such as an embedding with `maskZero`, passes it
 * on, and takes a mask [batch, tokens] of 0 and 1 as a second input: `layer.apply([x, mask])`. With both, a token must be
 * kept by both.
 *
 * Errors: OPTION at the first call for options that MoE does not have; SHAPE unless the input has three dimensions, and
 * the mask two.
 *
 * @example
 * ```ts
 * import * as tf from '@tensorflow/tfjs'
 * import { moeLayer } from 'st-moe/tfjs'
 *
 * const model = tf.sequential({ layers: [moeLayer({ inputShape: [16, 8], numExperts: 4 }), tf.layers.dense({ units: 1 })] })
 * model.compile({ optimizer: 'adam', loss: 'meanSquaredError' })
 * await model.fit(tf.randomNormal([32, 16, 8]), tf.zeros([32, 16, 1]), { epochs: 1, verbose: 0 })
 * console.log((model.predict(tf.zeros([1, 16, 8])) as tf.Tensor).shape) // → [ 1, 16, 1 ]
 * ```
 */
export class MoELayer extends tf.layers.Layer {
  /** @internal */
  static className = 'StMoE'

  /** @internal */
  static override fromConfig<T extends tf.serialization.Serializable>(
    cls: tf.serialization.SerializableConstructor<T>,
    { customObjects: _, ...config }: tf.serialization.ConfigDict, // which the reader of models adds
  ): T {
    return new cls(config)
  }

  readonly #options: Record<string, unknown>
  #moe: MoE | null = null
  #parameters: { parameter: Parameter; variable: tf.Variable; copied: object | null }[] = []
  #auxLoss: tf.Scalar | null = null
  /** Steps that TensorFlow.js has not asked for gradients, and the tape on which it could. */
  readonly #pending = new Set<GradHandle>()
  #tape: unknown = null

  /** Errors: OPTION for `dim` and `experts`. */
  constructor(config: MoELayerConfig = {}) {
    super(parts(checkedConfig(config), true))
    this.#options = parts(config, false)
    this.supportsMasking = true
    this.addLoss(() => this.auxLoss)
  }

  /** The auxiliary loss of the last call: 0 in evaluation. It belongs to the layer. Errors: OPTION before the first call. */
  get auxLoss(): tf.Scalar {
    return this.#auxLoss ?? fail('OPTION', 'MoELayer.auxLoss', 'the layer has not been called')
  }

  /** The MoE that computes. Its parameters are copies of the variables. Errors: OPTION before `build`. */
  get moe(): MoE {
    return this.#moe ?? fail('OPTION', 'MoELayer.moe', 'the layer has not been built')
  }

  /** @internal */
  override build(inputShape: tf.Shape | tf.Shape[]): void {
    const [shape, mask, ...others] = shapesOf(inputShape)
    const dim = shape.at(-1)
    if (shape.length !== 3 || typeof dim !== 'number')
      fail('SHAPE', 'MoELayer', `the input must be [batch, tokens, dim], got ${showShape(shape.map(String))}`)
    if (mask && mask.length !== 2)
      fail('SHAPE', 'MoELayer', `the second input is a mask, [batch, tokens], got ${showShape(mask.map(String))}`)
    if (others.length > 0) fail('OPTION', 'MoELayer', `takes an input and a mask, got ${others.length + 2} inputs`)
    const moe = withoutScope(() => new MoE({ ...this.#options, dim }))
    this.#moe = moe
    this.#parameters = [...moe.namedParameters()].map(([name, parameter]) => {
      const weight = this.addWeight(name, [...parameter.shape], 'float32', tf.initializers.zeros())
      tf.tidy(() => void weight.write(tf.tensor(parameter.dataSync() as Float32Array, [...parameter.shape])))
      return { parameter, variable: weight.read() as tf.Variable, copied: null }
    })
    super.build(inputShape)
  }

  /** @internal */
  override computeOutputShape(inputShape: tf.Shape | tf.Shape[]): tf.Shape {
    return this.#outputs(shapesOf(inputShape)[0])
  }

  readonly #outputs = <S extends readonly (number | null)[]>(shape: S): (number | null)[] => [
    ...shape.slice(0, -1),
    (this.#options as { outputDim?: number }).outputDim ?? shape.at(-1)!,
  ]

  /** @internal */
  override call(inputs: tf.Tensor | tf.Tensor[], kwargs: Record<string, unknown>): tf.Tensor {
    return tf.tidy(() => {
      const ofModel = Array.isArray(inputs)
      const [x, given] = ofModel ? inputs : [inputs]
      const before = ofModel && !getsMask(this) ? null : (kwargs.mask as tf.Tensor | undefined)
      const mask = bothMasks(before, given)
      this.#copyWeights()
      this.moe.train(kwargs.training === true)
      const [outputs, aux] = tf.engine().isTapeOn() ? this.#recorded(x, mask) : this.#plain(x, mask)
      this.#auxLoss?.dispose()
      this.#auxLoss = tf.keep(aux)
      return outputs
    })
  }

  /** Values of variables that have changed since they were last copied. */
  #copyWeights(): void {
    for (const entry of this.#parameters) {
      const { dataId } = entry.variable
      if (entry.copied === dataId) continue
      entry.parameter.copyFrom(entry.variable.dataSync() as Float32Array)
      entry.copied = dataId
    }
  }

  /** Of st-moe, where its weights are. */
  #input(x: tf.Tensor): Tensor {
    return tensor(x.dataSync() as Float32Array, x.shape, { device: this.#parameters[0].parameter.device })
  }

  #forwardOptions(mask: tf.Tensor | null): MoEForwardOptions {
    return mask ? { mask: this.#input(mask) } : {}
  }

  #plain(x: tf.Tensor, mask: tf.Tensor | null): [outputs: tf.Tensor, aux: tf.Scalar] {
    return scope(() =>
      noGrad(() => {
        const { outputs, totalAuxLoss } = this.moe.forward(this.#input(x), this.#forwardOptions(mask))
        return [tf.tensor(outputs.dataSync() as Float32Array, [...outputs.shape]), tf.scalar(totalAuxLoss.item())]
      }),
    )
  }

  /** The outputs and the loss of one function, as one tensor, with the gradients of st-moe. */
  #recorded(x: tf.Tensor, mask: tf.Tensor | null): [outputs: tf.Tensor, aux: tf.Scalar] {
    const tape = tf.engine().state.activeTape
    if (tape !== this.#tape) this.#dropSteps()
    this.#tape = tape
    const compute = tf.customGrad((...args) => {
      const input = args[0] as tf.Tensor
      const step = scope(() =>
        this.moe.forwardWithGrad(input.dataSync() as Float32Array, input.shape, this.#forwardOptions(mask)),
      )
      this.#pending.add(step)
      const joined = new Float32Array(step.outputs.length + 1)
      joined.set(step.outputs)
      joined[step.outputs.length] = step.totalAuxLoss
      const gradFunc = (dy: tf.Tensor): tf.Tensor[] => {
        const gradient = dy.dataSync() as Float32Array
        this.#pending.delete(step)
        this.moe.zeroGrad()
        const { dInput } = step.backward(gradient.slice(0, -1), gradient.at(-1))
        const gradients = this.#parameters.map(({ parameter: { grad, shape } }) =>
          grad ? tf.tensor(grad.dataSync() as Float32Array, [...shape]) : tf.zeros([...shape]),
        )
        this.moe.zeroGrad()
        return [tf.tensor(dInput as Float32Array, input.shape), ...gradients]
      }
      return { value: tf.tensor1d(joined), gradFunc }
    })
    const joined = compute(x, ...this.#parameters.map(({ variable }) => variable)) as tf.Tensor1D
    const size = joined.size - 1
    return [joined.slice([0], [size]).reshape(this.#outputs(x.shape) as number[]), joined.slice([size], [1]).asScalar()]
  }

  #dropSteps(): void {
    for (const step of this.#pending) step.dispose()
    this.#pending.clear()
    this.#tape = null
  }

  /** @internal */
  override getConfig(): tf.serialization.ConfigDict {
    return { ...super.getConfig(), ...(this.#options as tf.serialization.ConfigDict) }
  }

  /** Frees the variables and the memory of st-moe, once no model uses the layer. */
  override dispose(): ReturnType<tf.layers.Layer['dispose']> {
    const result = super.dispose()
    if (result.refCountAfterDispose > 0) return result
    this.#dropSteps()
    this.#moe?.dispose()
    this.#auxLoss?.dispose()
    this.#auxLoss = null
    return result
  }
}

tf.serialization.registerClass(MoELayer)

/** A {@link MoELayer}, as `tf.layers.dense(config)` is a dense layer. */
export const moeLayer = (config?: MoELayerConfig): MoELayer => new MoELayer(config)
