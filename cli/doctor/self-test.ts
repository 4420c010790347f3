import { type Device, Generator, MoE, manualSeed, randn, scope, type Tensor } from '../../lib/index.js'

/** How accurately a device computes the layer. */
export interface SelfTest {
  passed: boolean
  /** Largest difference between f32 and f64 outputs, relative to the largest output. */
  outputError: number
  /** Relative difference between a directional derivative by the backward and by finite differences, in f64. */
  gradientError: number
  /** The message of an exception. */
  error?: string
}

const [B, N, D, E] = [2, 24, 16, 4]
/** For dot products of length 40 with 24 bits of precision. */
const outputTolerance = 1e-4
const gradientTolerance = 1e-6
const h = 1e-5

/** Runs a small layer forward and backward on a device. */
export function selfTest(device: Device): SelfTest {
  try {
    const [outputError, gradientError] = scope(() => [outputErrorOn(device), gradientErrorOn(device)])
    const passed = outputError <= outputTolerance && gradientError <= gradientTolerance
    return { passed, outputError, gradientError }
  } catch (error) {
    return { passed: false, outputError: Number.NaN, gradientError: Number.NaN, error: (error as Error).message }
  }
}

function layer(device: Device, dtype: 'f32' | 'f64'): MoE {
  manualSeed(11)
  const options = { dim: D, numExperts: E, gatingTopN: 2, thresholdTrain: 0, device, dtype }
  // The straight-through gradient is not the gradient of the outputs.
  return new MoE({ ...options, straightThroughDispatchTensor: false })
}

const sample = (step: number): Tensor =>
  randn([B, N, D], { generator: new Generator(5, step), dtype: 'f64', device: 'cpu' })

function outputErrorOn(device: Device): number {
  using reference = layer('cpu', 'f64')
  using tested = layer(device, 'f32')
  tested.loadStateDict(reference.stateDict())
  const x = sample(0)
  const expected = reference.forward(x).outputs.dataSync()
  const outputs = tested.forward(x.to('f32').to(device)).outputs.dataSync()
  const largest = (values: ArrayLike<number>): number => Math.max(...Array.from(values, Math.abs))
  return largest(Array.from(outputs, (value, i) => value - expected[i])) / largest(expected)
}

/** Compares d loss(x + t v) / dt at 0 by the backward with (loss(x + h v) − loss(x − h v)) / 2h. */
function gradientErrorOn(device: Device): number {
  using moe = layer(device, 'f64')
  const loss = (x: Tensor): Tensor => {
    const { outputs, totalAuxLoss } = moe.forward(x)
    return outputs.square().mean().add(totalAuxLoss)
  }
  const [x, v] = [sample(0).to(device), sample(1).to(device)]
  const leaf = x.clone()
  leaf.requiresGrad = true
  loss(leaf).backward()
  const byBackward = leaf.grad!.mul(v).sum().item()
  const [above, below] = [h, -h].map((t) => loss(x.add(v.mul(t))).item())
  const byDifferences = (above - below) / (2 * h)
  return Math.abs(byBackward - byDifferences) / Math.abs(byDifferences)
}
