import { noGrad, scope, tensor } from '../../index.js'
import { cut } from './batches.js'
import type { LanguageModel } from './model.js'

/**
 * The preferred characters of each expert, [layer][expert]: those with the largest fraction of top-1 assignments to it,
 * without rare characters.
 */
export function preferredCharacters(
  model: LanguageModel,
  text: Int32Array,
  vocabulary: readonly string[],
  { sequences = 64, count = 5 } = {},
): string[][][] {
  const { context } = model
  const available = Math.min(sequences, Math.floor((text.length - 1) / context))
  const starts = Array.from({ length: available }, (_, i) => i * context)
  const { input } = cut(text, starts, context)
  return scope(() => {
    const { routed } = noGrad(() => model.forward(tensor(input, [available, context])))
    return routed.map(({ routing }) => {
      const K = routing.expertIndex.shape[2]
      const expertIndex = routing.expertIndex.dataSync()
      const visits = Array.from({ length: routing.numExperts }, () => new Map<number, number>())
      for (const [i, character] of input.entries()) {
        const seen = visits[expertIndex[i * K]]
        seen.set(character, (seen.get(character) ?? 0) + 1)
      }
      return visits.map((seen) => strongest(seen, input, count).map((character) => visible(vocabulary[character])))
    })
  })
}

function strongest(visits: ReadonlyMap<number, number>, input: Int32Array, count: number): number[] {
  const total = new Map<number, number>()
  for (const character of input) total.set(character, (total.get(character) ?? 0) + 1)
  const share = (character: number): number => visits.get(character)! / total.get(character)!
  return [...visits.keys()]
    .filter((character) => total.get(character)! >= input.length / 500)
    .sort((a, b) => share(b) - share(a) || a - b)
    .slice(0, count)
}

/** Shows whitespace as visible symbols. */
const visible = (character: string): string => ({ ' ': '␣', '\n': '↵', '\t': '⇥' })[character] ?? character
