/**
 * Counts of n characters, the yardstick of a language model: what can be said about the next character from the n − 1
 * before it. Smoothed by Witten and Bell's interpolation, which has nothing to tune: with c the count of a context and
 * u the number of different characters seen after it,
 *
 *   p_n(x | context) = (count(context x) + u · p_{n−1}(x | shorter context)) / (c + u),   p_0 = 1 / V
 */
interface Level {
  /** Occurrences of context and character, keyed as one number in base V. */
  pairs: Map<number, number>
  /** By context: occurrences, and different characters after it. */
  contexts: Map<number, { count: number; followers: number }>
}

function countLevel(text: Int32Array, order: number, V: number): Level {
  const pairs = new Map<number, number>()
  const contexts = new Map<number, { count: number; followers: number }>()
  for (let i = order - 1; i < text.length; i++) {
    const context = keyOf(text, i - order + 1, i, V)
    const pair = context * V + text[i]
    const seen = pairs.get(pair) ?? 0
    pairs.set(pair, seen + 1)
    let entry = contexts.get(context)
    if (!entry) {
      entry = { count: 0, followers: 0 }
      contexts.set(context, entry)
    }
    entry.count++
    if (seen === 0) entry.followers++
  }
  return { pairs, contexts }
}

function keyOf(text: Int32Array, from: number, to: number, V: number): number {
  let key = 0
  for (let i = from; i < to; i++) key = key * V + text[i]
  return key
}

/** Characters that are counted at most: a Map holds no more than 2^24 entries. */
const maxCounted = 2 ** 22

/**
 * Loss on the held-out text, in nats per character, of counts of 1, 2, … up to 4 characters of the training text: of as
 * many as a number can tell apart, at the beginning of a long text.
 */
export function ngramLosses(training: Int32Array, heldOut: Int32Array, V: number): number[] {
  const highest = ngramNames.findLastIndex((_, i) => V ** (i + 1) <= Number.MAX_SAFE_INTEGER) + 1
  const counted = training.subarray(0, maxCounted)
  const levels = Array.from({ length: highest }, (_, i) => countLevel(counted, i + 1, V))
  const total = new Float64Array(highest)
  for (let i = highest - 1; i < heldOut.length; i++) {
    let p = 1 / V
    for (const [n, { pairs, contexts }] of levels.entries()) {
      const context = keyOf(heldOut, i - n, i, V)
      const entry = contexts.get(context)
      if (entry)
        p = ((pairs.get(context * V + heldOut[i]) ?? 0) + entry.followers * p) / (entry.count + entry.followers)
      total[n] -= Math.log(p)
    }
  }
  return Array.from(total, (sum) => sum / (heldOut.length - highest + 1))
}

export const ngramNames = ['unigram', 'bigram', 'trigram', 'four-gram']
