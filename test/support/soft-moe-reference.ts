import type { SoftMoE, Tensor } from '../../lib/index.js'
import { type Numbers, values } from './numbers.js'
import { gelu } from './reference.js'

// The forward of SoftMoE as docs/soft-moe.md has it, in plain loops and double precision, from the state dict.

const dot = (a: number[], b: number[]): number => a.reduce((sum, v, i) => sum + v * b[i], 0)
const range = <T>(n: number, entry: (i: number) => T): T[] => Array.from({ length: n }, (_, i) => entry(i))

function softmax(logits: number[]): number[] {
  const largest = Math.max(...logits)
  const exps = logits.map((l) => Math.exp(l - largest))
  const total = exps.reduce((a, b) => a + b, 0)
  return exps.map((e) => e / total)
}

type State = (name: string) => Numbers

/** Rows [count, D] of a state tensor. */
const matrix = (numbers: Numbers, D: number): number[][] =>
  range(numbers.length / D, (i) => range(D, (j) => numbers[i * D + j]))

function normed(x: number[], state: State, norm: string, layerNorm: boolean): number[] {
  const gamma = state(`${norm}.gamma`)
  if (!layerNorm) {
    const length = Math.max(Math.hypot(...x), 1e-12)
    return x.map((v, j) => (v / length) * Math.sqrt(x.length) * gamma[j])
  }
  const beta = state(`${norm}.beta`)
  const mean = x.reduce((a, b) => a + b, 0) / x.length
  const variance = x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length
  return x.map((v, j) => ((v - mean) / Math.sqrt(variance + 1e-5)) * gamma[j] + beta[j])
}

function expertOf(state: State, e: number, D: number, geglu: boolean): (x: number[]) => number[] {
  const [b1, b2] = [0, 3].map((i) => state(`experts.experts.${e}.${i}.bias`))
  const w1 = matrix(state(`experts.experts.${e}.0.weight`), D)
  const H = geglu ? w1.length / 2 : w1.length
  const w2 = matrix(state(`experts.experts.${e}.3.weight`), H)
  return (x) => {
    const a = w1.map((row, i) => dot(row, x) + b1[i])
    const hidden = range(H, (i) => (geglu ? a[i] * gelu(a[H + i]) : gelu(a[i])))
    return w2.map((row, i) => dot(row, hidden) + b2[i])
  }
}

/** Tokens of each sequence of x, and where they are in it. */
function tokensOf(x: Tensor, D: number): { at: (b: number, n: number, d: number) => number; B: number; N: number } {
  const [B, ...rest] = x.shape
  const N = x.size / B / D
  const image = rest.length === 3
  return { B, N, at: (b, n, d) => b * N * D + (image ? d * N + n : n * D + d) }
}

interface Given {
  mask?: Tensor
  uniforms?: Tensor
  noiseMult?: number
}

const clampedLog = (v: number): number => Math.log(Math.max(v, 1e-20))

/** The numbers of the output for x. */
export function softMoEReference(layer: SoftMoE, x: Tensor, { mask, uniforms, noiseMult = 1 }: Given): Float64Array {
  const { dim: D, numExperts: E, numSlots: S } = layer
  const tensors = layer.stateDict()
  const state: State = (name) => values(tensors[name])
  const layerNorm = 'norm.beta' in tensors
  const { B, N, at } = tokensOf(x, D)
  const [input, keep, u] = [values(x), mask && values(mask), uniforms && values(uniforms)]
  const embeds = matrix(state('slot_embeds'), D).map((row) => normed(row, state, 'slot_norm', layerNorm))
  const experts = range(E, (e) => expertOf(state, e, D, layer.experts.geglu))
  const out = new Float64Array(x.size)
  for (let b = 0; b < B; b++) {
    const tokens = range(N, (n) =>
      normed(
        range(D, (d) => input[at(b, n, d)]),
        state,
        'norm',
        layerNorm,
      ),
    )
    const logits = range(N, (n) =>
      range(E * S, (s) => {
        if (keep && keep[b * N + n] === 0) return -1e300
        const noise = u ? -clampedLog(-clampedLog(u[(b * N + n) * E * S + s])) * noiseMult : 0
        return dot(tokens[n], embeds[s]) + noise
      }),
    )
    const results = range(E * S, (s) => {
      const weights = softmax(logits.map((row) => row[s]))
      const slot = range(D, (d) => weights.reduce((sum, w, n) => sum + w * tokens[n][d], 0))
      return experts[Math.floor(s / S)](slot)
    })
    for (let n = 0; n < N; n++) {
      const weights = softmax(logits[n])
      for (let d = 0; d < D; d++) out[at(b, n, d)] = weights.reduce((sum, w, s) => sum + w * results[s][d], 0)
    }
  }
  return out
}
