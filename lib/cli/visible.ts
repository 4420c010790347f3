/** Control characters but line end and tab, what turns the direction of reading, lone surrogates and no characters. */
const hidden = /(?![\n\t])[\p{Cc}\p{Cs}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe\uffff]/gu

function escapeOf(character: string): string {
  const code = character.charCodeAt(0).toString(16)
  return code.length > 2 ? `\\u${code.padStart(4, '0')}` : `\\x${code.padStart(2, '0')}`
}

/** A text as it is safe to show: a terminal would obey its control characters. */
export const visible = (text: string): string => text.replace(hidden, escapeOf)

/** The same for a name, which is a part of one line. */
export const visibleName = (text: string): string => visible(text).replaceAll('\n', '\\n').replaceAll('\t', '\\t')
