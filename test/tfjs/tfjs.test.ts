import * as tf from '@tensorflow/tfjs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { MoE, manualSeed, memory, randn, scope, tensor } from '../../lib/index.js'
import { type MoELayer, moeLayer } from '../../lib/tfjs/index.js'
import { relativeError } from '../support/numbers.js'

const [B, N, D] = [2, 16, 8]
const options = { numExperts: 4, gatingTopN: 2, balanceLossCoef: 0.1, routerZLossCoef: 0.01 }
const error = (found: ArrayLike<number>, expected: ArrayLike<number>): number =>
  relativeError(Float64Array.from(found), Float64Array.from(expected))

beforeAll(async () => {
  await tf.setBackend('cpu')
})
afterAll(() => tf.disposeVariables())

/** A model that is saved and loaded in memory. */
async function copied(model: tf.LayersModel): Promise<tf.LayersModel> {
  let saved: tf.io.ModelArtifacts | undefined
  await model.save(
    tf.io.withSaveHandler(async (artifacts) => {
      saved = artifacts
      return { modelArtifactsInfo: { dateSaved: new Date(), modelTopologyType: 'JSON' } }
    }),
  )
  return tf.loadLayersModel(
    tf.io.fromMemory({ ...saved!, modelTopology: JSON.parse(JSON.stringify(saved!.modelTopology)) }),
  )
}

const built = (seed = 1): MoELayer => {
  manualSeed(seed)
  const layer = moeLayer(options)
  layer.build([null, N, D])
  return layer
}

describe('moeLayer', () => {
  test('outputs and all gradients are those of MoE', () => {
    const layer = built()
    manualSeed(1)
    const moe = new MoE({ ...options, dim: D })
    const x = scope(() => randn([B, N, D]).dataSync())
    const dy = scope(() => randn([B, N, D]).dataSync())
    manualSeed(2)
    const ours = scope(() => {
      const input = tensor(x, [B, N, D], { requiresGrad: true })
      const { outputs, totalAuxLoss } = moe.forward(input)
      outputs
        .mul(tensor(dy, [B, N, D]))
        .sum()
        .add(totalAuxLoss.mul(3))
        .backward()
      return { outputs: outputs.dataSync(), aux: totalAuxLoss.item(), dx: input.grad!.dataSync() }
    })
    manualSeed(2)
    const variables = layer.trainableWeights.map((weight) => weight.read() as tf.Variable)
    tf.tidy(() => {
      const weights = tf.tensor(dy, [B, N, D])
      const loss = (input: tf.Tensor) => {
        const outputs = layer.call(input, { training: true })
        expect(error(outputs.dataSync(), ours.outputs)).toBe(0)
        return outputs.mul(weights).sum().add(layer.auxLoss.mul(3)).asScalar()
      }
      const input = tf.variable(tf.tensor(x, [B, N, D]))
      const { grads } = tf.variableGrads(() => loss(input), [input, ...variables])
      expect(layer.auxLoss.dataSync()[0]).toBeCloseTo(ours.aux, 6)
      expect(error(grads[input.name].dataSync(), ours.dx)).toBeLessThan(1e-6)
      const parameters = [...moe.parameters()]
      expect(parameters.length).toBe(variables.length)
      for (const [i, { grad }] of parameters.entries())
        expect(error(grads[variables[i].name].dataSync(), grad!.dataSync()), variables[i].name).toBeLessThan(1e-6)
      input.dispose()
    })
    for (const owned of [moe, layer.moe, layer.auxLoss]) owned.dispose()
  })

  test('a model trains with fit, in flat memory, with the auxiliary loss in its loss', async () => {
    manualSeed(3)
    const layer = moeLayer({ ...options, inputShape: [N, D] })
    const model = tf.sequential({ layers: [layer, tf.layers.dense({ units: 1 })] })
    model.compile({ optimizer: tf.train.adam(0.01), loss: 'meanSquaredError' })
    const x = tf.randomNormal([32, N, D], 0, 1, 'float32', 4)
    const y = tf.tidy(() => x.mul(x).sum(-1, true).sub(D).div(4))
    const losses = async (epochs: number): Promise<number[]> =>
      (await model.fit(x, y, { epochs, batchSize: 16, verbose: 0, shuffle: false })).history.loss as number[]
    const [first] = await losses(2)
    const before = [tf.memory().numTensors, memory().tensors, memory().bytes]
    const later = await losses(30)
    expect(later.at(-1)!).toBeLessThan(first * 0.6)
    expect([tf.memory().numTensors, memory().tensors, memory().bytes]).toEqual(before)
    const aux = layer.auxLoss.dataSync()[0]
    expect(aux).toBeGreaterThan(0)

    const loaded = await copied(model)
    const answers = [model, loaded].map((each) => {
      manualSeed(5) // of the choice of second experts
      return tf.tidy(() => (each.predict(x) as tf.Tensor).dataSync())
    })
    expect(answers[1]).toEqual(answers[0])
    expect((loaded.layers[0] as MoELayer).getConfig()).toMatchObject(options)
    const left = [tf.memory().numTensors, memory().tensors]
    for (let i = 0; i < 3; i++) tf.tidy(() => void loaded.predict(x))
    expect([tf.memory().numTensors, memory().tensors]).toEqual(left)
    const native = memory().tensors
    loaded.dispose()
    expect(memory().tensors).toBeLessThan(native)
    for (const owned of [model, x, y]) owned.dispose()
  })

  test('a layer that is not trained keeps no steps', async () => {
    const moe = moeLayer({ inputShape: [N, D], numExperts: 2, trainable: false })
    const model = tf.sequential({ layers: [moe, tf.layers.dense({ units: 1 })] })
    model.compile({ optimizer: 'sgd', loss: 'meanSquaredError' })
    const [x, y] = [tf.ones([4, N, D]), tf.zeros([4, N, 1])]
    const tensors: number[] = []
    for (let i = 0; i < 4; i++) {
      await model.fit(x, y, { epochs: 3, verbose: 0 })
      tensors.push(memory().tensors)
    }
    expect(new Set(tensors).size).toBe(1)
    const before = memory().tensors
    model.dispose()
    expect(memory().tensors).toBeLessThan(before)
    for (const owned of [x, y]) owned.dispose()
  })

  test('outputDim is the last size of the output', async () => {
    const model = tf.sequential({ layers: [moeLayer({ inputShape: [N, D], numExperts: 2, outputDim: 3 })] })
    model.compile({ optimizer: 'sgd', loss: 'meanSquaredError' })
    expect(model.outputShape).toEqual([null, N, 3])
    const [x, y] = [tf.ones([2, N, D]), tf.zeros([2, N, 3])]
    await model.fit(x, y, { epochs: 1, verbose: 0 })
    const output = model.predict(x) as tf.Tensor
    expect(output.shape).toEqual([2, N, 3])
    model.dispose()
    for (const owned of [x, y, output]) owned.dispose()
  })

  describe('padding', () => {
    const real = Array.from({ length: N }, (_, i) => i >= N / 2) // as of a sentence that is padded on the left
    const words = [1, 2].map((seed) => real.map((is, i) => (is ? ((seed * 7 + i) % 5) + 1 : 0)))
    const maskedOptions = { numExperts: 4, router: 'switch', capacityFactorEval: 1, balanceLossCoef: 0.1 } as const
    const embedding = (maskZero: boolean) =>
      tf.layers.embedding({
        inputLength: N,
        inputDim: 6,
        outputDim: D,
        maskZero,
        embeddingsInitializer: tf.initializers.randomNormal({ seed: 1 }),
      })
    const found = (model: tf.LayersModel, inputs: tf.Tensor | tf.Tensor[]): Float32Array =>
      tf.tidy(() => (model.predict(inputs) as tf.Tensor).dataSync() as Float32Array)
    const masked = (layer: MoELayer, embedded: tf.Tensor): Float32Array =>
      scope(() => {
        const input = tensor(embedded.dataSync() as Float32Array, [B, N, D])
        const mask = tensor([real.map(Number), real.map(Number)])
        return layer.moe.forward(input, { mask }).outputs.dataSync() as Float32Array
      })

    test('the mask of an embedding takes no place of real tokens, and goes on to the next layer', async () => {
      manualSeed(6)
      const ids = tf.tensor2d(words)
      for (const maskZero of [true, false]) {
        const layer = moeLayer(maskedOptions)
        const next = moeLayer(maskedOptions)
        const model = tf.sequential({
          layers: [embedding(maskZero), layer, tf.layers.activation({ activation: 'linear' }), next],
        })
        model.build([null, N])
        const embedded = model.layers[0].apply(ids) as tf.Tensor
        const one = tf.tensor(masked(layer, embedded), [B, N, D])
        expect(error(found(model, ids), masked(next, one)) === 0).toBe(maskZero)
        model.compile({ optimizer: 'sgd', loss: 'meanSquaredError' })
        const y = tf.zeros([B, N, D])
        const before = memory().tensors
        await model.fit(ids, y, { epochs: 2, verbose: 0 })
        expect(memory().tensors).toBe(before)
        for (const owned of [model, embedded, one, y]) owned.dispose()
      }
      ids.dispose()
    })

    test('a mask that a layer between has ended is none', () => {
      const layer = moeLayer(maskedOptions)
      const reshaped = [tf.layers.flatten(), tf.layers.reshape({ targetShape: [2 * N, D / 2] })]
      const model = tf.sequential({ layers: [embedding(true), ...reshaped, tf.layers.dense({ units: 4 }), layer] })
      model.build([null, N])
      const ids = tf.tensor2d(words)
      expect(found(model, ids).length).toBe(B * 2 * N * 4)
      for (const owned of [model, ids]) owned.dispose()
    })

    test('a second input is a mask, in training too, and joins the first', () => {
      manualSeed(7)
      const [x, ids] = [tf.input({ shape: [N, D] }), tf.input({ shape: [N] })]
      const layer = moeLayer(maskedOptions)
      const model = tf.model({ inputs: [x, ids], outputs: layer.apply([x, ids]) as tf.SymbolicTensor })
      expect(model.outputShape).toEqual([null, N, D])
      const values = tf.randomNormal([B, N, D], 0, 1, 'float32', 3)
      const mask = tf.tensor2d([real.map(Number), real.map(Number)])
      const expected = masked(layer, values)
      expect(error(found(model, [values, mask]), expected)).toBe(0)
      const all = tf.ones([B, N])
      expect(error(found(model, [values, all]), expected)).toBeGreaterThan(0.1)
      const gradients = (second: tf.Tensor, first?: tf.Tensor): Float32Array =>
        tf.tidy(
          () =>
            tf
              .grad((each) => (layer.call(first ? each : [each, second], { mask: first }) as tf.Tensor).square().sum())(
                values,
              )
              .dataSync() as Float32Array,
        )
      const given = gradients(mask)
      const padded = given.filter((_, i) => !real[Math.floor(i / D) % N])
      expect(padded.every((value) => value === 0) && given.some((value) => value !== 0)).toBe(true)
      expect(gradients(all, mask.cast('bool'))).toEqual(given) // of a call without a model
      expect(gradients(all)).not.toEqual(given)
      const short = tf.ones([B, N - 1])
      expect(() => layer.call([values, short], {})).toThrow(/mask must be \[2, 16\], got \[2, 15\]/)
      for (const owned of [model, values, mask, all, short]) owned.dispose()
    })

    test('a model with a mask as second input is saved and loaded', async () => {
      const [x, mask] = [tf.input({ shape: [N, D] }), tf.input({ shape: [N] })]
      const outputs = moeLayer(maskedOptions).apply([x, mask]) as tf.SymbolicTensor
      const model = tf.model({ inputs: [x, mask], outputs })
      const loaded = await copied(model)
      const inputs = [tf.ones([B, N, D]), tf.tensor2d([real.map(Number), real.map(Number)])]
      expect(found(loaded, inputs)).toEqual(found(model, inputs))
      for (const owned of [model, loaded, ...inputs]) owned.dispose()
    })
  })

  test('says what is wrong', () => {
    const shape = [null, N, D]
    expect(() => moeLayer().build([shape, shape])).toThrow(
      /the second input is a mask, \[batch, tokens\], got \[null, 16, 8\]/,
    )
    expect(() => moeLayer().build([shape, [null, N], shape])).toThrow(/takes an input and a mask, got 3 inputs/)
    expect(() => moeLayer({ dim: 3 } as never)).toThrow(/dim cannot be set: it is the last size of the input/)
    expect(() => moeLayer({ experts: [] } as never)).toThrow(/experts cannot be set/)
    expect(() => moeLayer(null as never)).toThrow(/config must be an object, got null/)
    expect(() => moeLayer({ numExprts: 3 } as never).build([null, N, D])).toThrow(/did you mean 'numExperts'/)
    expect(() => moeLayer().build([null, D])).toThrow(/the input must be \[batch, tokens, dim\], got \[null, 8\]/)
    expect(() => moeLayer().auxLoss).toThrow(/the layer has not been called/)
  })
})
