import { setImmediate } from 'node:timers/promises'
import type { TokenArray } from '../../language-model/index.js'

/**
 * An n-gram model of characters, the baseline of the language model. It predicts a character from the n − 1 before it,
 * with Witten-Bell interpolation, which has no hyperparameters. With c the count of a context and u the number of
 * different characters seen after it,
 *
 *   p_n(x | context) = (count(context x) + u · p_{n−1}(x | shorter context)) / (c + u),   p_0 = 1 / V
 */
interface Level {
  /** Counts of n-grams, keyed by a number in base V. */
  pairs: Map<number, number>
  /** By context: its count, and the number of different characters after it. */
  contexts: Map<number, { count: number; followers: number }>
}

async function countLevel(text: TokenArray, order: number, V: number, done: Done): Promise<Level> {
  const pairs = new Map<number, number>()
  const contexts = new Map<number, { count: number; followers: number }>()
  for (let i = order - 1; i < text.length; i++) {
    if (i % often === 0) await done()
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

function keyOf(text: TokenArray, from: number, to: number, V: number): number {
  let key = 0
  for (let i = from; i < to; i++) key = key * V + text[i]
  return key
}

/** Maximum number of counted characters: a Map has at most 2^24 entries. */
const maxCounted = 2 ** 22

/** Characters after which the program does other things. */
const often = 2 ** 16
/** Called then. */
type Done = () => Promise<void>

/**
 * Loss of 1-gram to 4-gram models on the held-out text, in nats per character; fewer if the keys of a large vocabulary
 * exceed a number. They count the beginning of a long training text.
 */
export async function ngramLosses(
  training: TokenArray,
  heldOut: TokenArray,
  V: number,
  progress: (done: number, total: number) => void = () => {},
): Promise<number[]> {
  const highest = ngramNames.findLastIndex((_, i) => V ** (i + 1) <= Number.MAX_SAFE_INTEGER) + 1
  const counted = training.subarray(0, maxCounted)
  let read = 0
  const done = (): Promise<void> => {
    progress(read, highest * counted.length + heldOut.length)
    read += often
    return setImmediate()
  }
  const levels: Level[] = []
  for (let order = 1; order <= highest; order++) levels.push(await countLevel(counted, order, V, done))
  const total = new Float64Array(highest)
  for (let i = highest - 1; i < heldOut.length; i++) {
    if (i % often === 0) await done()
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

export const ngramNames = ['unigram', 'bigram', 'trigram', '4-gram']
