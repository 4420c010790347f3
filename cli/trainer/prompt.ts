import type { CharacterTokenizer, TokenArray, Tokens } from '../../language-model/index.js'

/** The beginning of the first full paragraph of the held-out text: whole words, at most `length` characters. */
export function promptOf(
  { heldOut, tokenizer: { vocabulary } }: Tokens<CharacterTokenizer>,
  length: number,
): TokenArray {
  const [lineEnd, space] = [vocabulary.indexOf('\n'), vocabulary.indexOf(' ')]
  const gap = heldOut.findIndex((character, i) => character === lineEnd && heldOut[i + 1] === lineEnd)
  const start = gap >= 0 && gap + 2 + length < heldOut.length ? gap + 2 : 0
  const end = heldOut.lastIndexOf(space, start + length - 1)
  return heldOut.subarray(start, end > start ? end + 1 : start + length)
}
