import { type LanguageModel, sequencesAt, type TokenArray, textOf } from '../../language-model/index.js'
import { noGrad, scope, tensor } from '../../lib/index.js'

/**
 * The preferred tokens of each expert, [layer][expert]: those with the largest fraction of top-1 assignments to it,
 * without rare tokens.
 */
export function preferredTokens(
  model: LanguageModel,
  text: TokenArray,
  { sequences = 64, count = 5 } = {},
): string[][][] {
  const { context, tokenizer } = model
  const available = Math.min(sequences, Math.floor((text.length - 1) / context))
  const starts = Array.from({ length: available }, (_, i) => i * context)
  const { input } = sequencesAt(text, starts, context)
  return scope(() => {
    const { routed } = noGrad(() => model.forward(tensor(input, [available, context])))
    return routed.map(({ routing }) => {
      const K = routing.expertIndex.shape[2]
      const expertIndex = routing.expertIndex.dataSync()
      const visits = Array.from({ length: routing.numExperts }, () => new Map<number, number>())
      for (const [i, token] of input.entries()) {
        const seen = visits[expertIndex[i * K]]
        seen.set(token, (seen.get(token) ?? 0) + 1)
      }
      return visits.map((seen) => strongest(seen, input, count).map((token) => visible(textOf(tokenizer, [token]))))
    })
  })
}

function strongest(visits: ReadonlyMap<number, number>, input: Int32Array, count: number): number[] {
  const total = new Map<number, number>()
  for (const token of input) total.set(token, (total.get(token) ?? 0) + 1)
  const share = (token: number): number => visits.get(token)! / total.get(token)!
  return [...visits.keys()]
    .filter((token) => total.get(token)! >= input.length / 500)
    .sort((a, b) => share(b) - share(a) || a - b)
    .slice(0, count)
}

const symbols: Record<string, string> = { ' ': '␣', '\n': '↵', '\t': '⇥' }

/** Shows whitespace as visible symbols. */
const visible = (text: string): string => text.replaceAll(/[ \n\t]/g, (character) => symbols[character])
