import { expect, test } from 'vitest'
import { type SampleOptions, sample } from '../../language-model/sample.js'
import { Draw, long } from '../support/numbers.js'

/** By sorting the whole vocabulary. */
function sorted(logits: Float32Array, u: number, { temperature, topK, topP }: SampleOptions): number {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b)
  if (temperature === 0) return order[0]
  const ranked = topK > 0 || topP < 1
  const tokens = ranked ? order.slice(0, topK > 0 ? topK : undefined) : Array.from(logits.keys())
  const weights = tokens.map((token) => Math.exp((logits[token] - logits[order[0]]) / temperature))
  const sums: number[] = []
  for (const weight of weights) sums.push((sums.at(-1) ?? 0) + weight)
  const total = sums[sums.length - 1]
  const used = topP < 1 ? (sums.find((sum) => sum >= total * topP) ?? total) : total
  const rank = sums.findIndex((sum) => sum > u * used)
  return tokens[rank < 0 ? tokens.length - 1 : rank]
}

test('a token is the one that a sort of the vocabulary gives, on ties the lowest first', () => {
  const draw = new Draw(3)
  for (let i = 0; i < (long ? 100_000 : 5000); i++) {
    const logit = () => draw.of([draw.integer(0, 3), draw.integer(0, 3), draw.between(-4, 4), Number.NEGATIVE_INFINITY])
    const logits = Float32Array.from({ length: draw.of([1, 2, 7, 60, 500]) }, logit)
    logits[draw.integer(0, logits.length - 1)] = 1
    const options = {
      temperature: draw.of([0, 0.2, 1, 2]),
      topK: draw.of([0, 1, 2, 5, 40, 400, 1000]),
      topP: draw.of([0, 0.1, draw.next(), 0.999, 1]),
    }
    const u = draw.of([0, draw.next(), 1 - 2 ** -24])
    expect([sample(logits, u, options), i, options, u]).toEqual([sorted(logits, u, options), i, options, u])
  }
})

test('logits that are no numbers are no endless loop', () => {
  for (const values of [[Number.NaN], [1, Number.NaN, 2, Number.NaN], Array(300).fill(Number.NaN)])
    for (const topK of [0, 1, 2])
      for (const topP of [0, 0.5, 1]) {
        const token = sample(Float32Array.from(values), 0.5, { temperature: 1, topK, topP })
        expect(token).toBeGreaterThanOrEqual(0)
        expect(token).toBeLessThan(values.length)
      }
})
