import { expect, test } from 'vitest'
import {
  captureStep,
  type Device,
  MoE,
  type MoEOptions,
  manualSeed,
  randn,
  scope,
  type Tensor,
  tensor,
} from '../../lib/index.js'
import { useEmulator } from '../support/emulator.js'
import { relativeError, values } from '../support/numbers.js'

// Layers of which most slots are empty: on CUDA they compute the rows of dispatched assignments alone, of which each
// expert has any number. The GPU is the emulator (npm run build:simt) unless ST_MOE_CUDA_LIBRARY names another plugin.

const built = useEmulator()

interface Uneven {
  options?: Partial<MoEOptions>
  shape: [number, number, number]
  training?: boolean
  /** Tokens from this one on are padding. */
  padding?: number
}
const cases: Record<string, Uneven> = {
  dropless: { options: { dropless: true }, shape: [2, 11, 16] },
  'dropless, masked': { options: { dropless: true }, shape: [2, 11, 16], padding: 4 },
  'one sequence is a choice of few experts': { options: { dropless: true, numExperts: 40 }, shape: [1, 3, 16] },
  'plain experts without biases': {
    options: { dropless: true, activation: 'silu', expertBiases: false },
    shape: [2, 9, 16],
  },
  dropout: { options: { dropless: true, expertDropout: 0.3 }, shape: [2, 9, 16] },
  bf16: { options: { dropless: true, computeDtype: 'bf16' }, shape: [2, 11, 16] },
  f16: { options: { dropless: true, computeDtype: 'f16' }, shape: [2, 11, 16] },
  'f64, any width': { options: { dropless: true, dtype: 'f64', dim: 7, expertHiddenDim: 13 }, shape: [2, 11, 7] },
  decoding: { shape: [3, 1, 16], training: false },
  'a few tokens of many experts': { options: { numExperts: 64 }, shape: [2, 8, 16], training: false },
  'a slot for each token': { options: { capacityFactorEval: 8 }, shape: [2, 12, 16], training: false },
  'two levels': { options: { numExperts: [4, 4], dropless: true }, shape: [2, 7, 16] },
  'input scaled': { options: { dropless: true, scaleInput: true }, shape: [2, 7, 16] },
}

/** Inputs that choose other experts each time, and the gradients of outputs. */
function inputs({ shape, options }: Uneven, device: Device) {
  manualSeed(3)
  const random = () => randn(shape, { device: 'cpu', dtype: options?.dtype }).to(device)
  return Array.from({ length: 3 }, () => ({ x: random(), dy: random() }))
}

function layer({ options, training = true }: Uneven, device: Device) {
  manualSeed(1)
  const moe = new MoE({ dim: 16, numExperts: 8, device: 'cpu', ...options }).to(device)
  return moe.train(training)
}

function maskOf({ shape: [B, N], padding = N }: Uneven, device: Device) {
  const mask = Int32Array.from({ length: B * N }, (_, i) => Number(i % N < padding))
  return tensor(mask, [B, N], { device })
}

/** All outputs first and then the gradients, last to first, so that the plans of three routings are alive at once. */
function run(uneven: Uneven, device: Device) {
  const moe = layer(uneven, device)
  const given = inputs(uneven, device)
  const mask = maskOf(uneven, device)
  manualSeed(7)
  for (const { x } of given) x.requiresGrad = true
  const results = given.map(({ x }) => moe.forward(x, { mask }))
  const numbers = results.map(({ outputs }) => values(outputs))
  for (const [i, { outputs }] of [...results.entries()].reverse()) {
    moe.zeroGrad()
    outputs.backward(given[i].dy)
    numbers.push(values(given[i].x.grad!), ...Array.from(moe.parameters(), ({ grad }) => (grad ? values(grad) : [])))
  }
  return { routing: results.map(({ routing }) => values(routing.expertIndex)), numbers }
}

const limitOf = ({ options }: Uneven) => (options?.computeDtype ? 0.03 : options?.dtype === 'f64' ? 1e-12 : 1e-5)

test.skipIf(!built).each(Object.entries(cases))('as on the CPU: %s', (_, uneven) => {
  const [onCpu, onGpu] = (['cpu', 'cuda'] as const).map((device) => scope(() => run(uneven, device)))
  expect(onGpu.routing).toEqual(onCpu.routing)
  for (const [i, numbers] of onGpu.numbers.entries())
    expect(relativeError(numbers, onCpu.numbers[i]), `result ${i}`).toBeLessThan(limitOf(uneven))
})

test.skipIf(!built).each(Object.entries(cases))('a captured step reads the rows of each replay: %s', (_, uneven) =>
  scope(() => {
    const moe = layer(uneven, 'cuda')
    const mask = maskOf(uneven, 'cuda')
    const given = inputs(uneven, 'cuda')
    const x = given[0].x.clone()
    const dy = given[0].dy.clone()
    const step = () => {
      moe.zeroGrad()
      const { outputs } = moe.forward(x, { mask })
      outputs.backward(dy)
      return outputs
    }
    const results = (outputs: Tensor) => [
      values(outputs),
      ...Array.from(moe.parameters(), ({ grad }) => (grad ? values(grad) : [])),
    ]
    const each = (once: () => Tensor) => {
      manualSeed(7)
      return given.map((one) => {
        x.copyFrom(one.x)
        dy.copyFrom(one.dy)
        return results(once())
      })
    }
    const wanted = each(step)
    const captured = captureStep(step, { device: 'cuda' })
    const got = each(() => captured.replay())
    for (const [i, result] of got.entries())
      for (const [j, numbers] of result.entries())
        expect(relativeError(numbers, wanted[i][j]), `replay ${i}, result ${j}`).toBeLessThan(limitOf(uneven))
    captured.dispose()
  }),
)
