/** Control characters except newline and tab, bidirectional controls, lone surrogates and noncharacters. */
const hidden = /(?![\n\t])[\p{Cc}\p{Cs}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe\uffff]/gu

function escapeOf(character: string): string {
  const code = character.charCodeAt(0).toString(16)
  return code.length > 2 ? `\\u${code.padStart(4, '0')}` : `\\x${code.padStart(2, '0')}`
}

/** A text without control characters, which a terminal would execute. */
export const visible = (text: string): string => text.replace(hidden, escapeOf)

/** The same for a name within a line. */
export const visibleName = (text: string): string => visible(text).replaceAll('\n', '\\n').replaceAll('\t', '\\t')
