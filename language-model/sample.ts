import { Descending } from './descending.js'

/** How the next token is chosen. */
export interface SampleOptions {
  temperature: number
  topK: number
  topP: number
}

/** Inverse transform sampling of a token with the uniform number u: of all in their order, else of the likeliest first. */
export function sample(logits: Float32Array, u: number, { temperature, topK, topP }: SampleOptions): number {
  if (temperature === 0) return likeliest(logits)
  const weightBelow = (largest: number) => (token: number) => Math.exp((logits[token] - largest) / temperature)
  if (topK === 0 && topP === 1) return fromAll(logits.length, weightBelow(logits[likeliest(logits)]), u)
  const tokens = Descending.of(logits, topK > 0 ? topK : logits.length)
  const weigh = weightBelow(tokens.indices.reduce((largest, token) => Math.max(largest, logits[token]), -Infinity))
  const weights = new Float64Array(logits.length)
  for (const token of tokens.indices) weights[token] = weigh(token)
  const weightOf = (token: number): number => weights[token]
  const total = tokens.indices.reduce((sum, token) => sum + weights[token], 0)
  const used = topP < 1 ? tokens.keep(weightOf, (sum) => sum >= total * topP) : total
  tokens.keep(weightOf, (sum) => sum > u * used)
  return tokens.last
}

function fromAll(count: number, weigh: (token: number) => number, u: number): number {
  const weights = new Float64Array(count)
  let total = 0
  for (let token = 0; token < count; token++) {
    weights[token] = weigh(token)
    total += weights[token]
  }
  let left = u * total
  let token = 0
  for (; token < count - 1; token++) {
    left -= weights[token]
    if (left < 0) break
  }
  return token
}

/** On ties the lowest. */
function likeliest(logits: Float32Array): number {
  let best = 0
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i
  return best
}
