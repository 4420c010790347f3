/** How the next token is chosen. */
export interface SampleOptions {
  temperature: number
  topK: number
  topP: number
}

/** Inverse transform sampling of a token with the uniform number u. */
export function sample(logits: Float32Array, u: number, { temperature, topK, topP }: SampleOptions): number {
  if (temperature === 0) return likeliest(logits)
  const ranked = topK > 0 || topP < 1
  const order = ranked ? descending(logits).slice(0, topK > 0 ? topK : undefined) : null
  const largest = logits[order ? order[0] : likeliest(logits)]
  const count = order?.length ?? logits.length
  const weights = new Float64Array(count)
  let total = 0
  for (let i = 0; i < count; i++) {
    weights[i] = Math.exp((logits[order ? order[i] : i] - largest) / temperature)
    total += weights[i]
  }
  const used = topP < 1 ? nucleus(weights, total * topP) : total
  let left = u * used
  let rank = 0
  for (; rank < count - 1; rank++) {
    left -= weights[rank]
    if (left < 0) break
  }
  return order ? order[rank] : rank
}

/** On ties the lowest. */
function likeliest(logits: Float32Array): number {
  let best = 0
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i
  return best
}

const descending = (logits: Float32Array): number[] =>
  Array.from(logits, (_, i) => i).sort((a, b) => logits[b] - logits[a] || a - b)

/** The sum of the first weights that reach `mass`. */
function nucleus(weights: Float64Array, mass: number): number {
  let sum = 0
  for (const weight of weights) {
    sum += weight
    if (sum >= mass) break
  }
  return sum
}
