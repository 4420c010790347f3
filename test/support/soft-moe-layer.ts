import { Generator, randn, SoftMoE, type SoftMoEOptions, scope, type Tensor } from '../../lib/index.js'
import { runSeed, values } from './numbers.js'

export const generator = new Generator(runSeed())
export const normal = (shape: readonly number[], dtype: 'f32' | 'f64' = 'f32') =>
  randn(shape, { generator, dtype: 'f32' }).to(dtype)

/** A layer whose parameters and buffers are all away from their first values. */
export function layerOf(options: Partial<SoftMoEOptions> = {}): SoftMoE {
  const layer = new SoftMoE({ dim: 8, numExperts: 3, numSlots: 2, expertMult: 2, ...options } as SoftMoEOptions)
  scope(() => {
    const state = Object.entries(layer.stateDict()).map(([name, value]) => {
      const fresh = normal(value.shape, value.dtype as 'f32').mul(name.includes('experts') ? 0.4 : 1)
      return [name, name.endsWith('gamma') ? fresh.mul(0.3).add(1) : fresh]
    })
    layer.loadStateDict(Object.fromEntries(state))
  })
  return layer
}

export const bits = (tensor: Tensor): number[] => Array.from(values(tensor))
