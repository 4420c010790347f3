import { visible } from './visible.js'

/** Escaped HTML or SVG. */
export class Markup {
  readonly #text: string

  constructor(text: string) {
    this.#text = text
  }

  toString(): string {
    return this.#text
  }
}

/**
 * HTML or SVG from a template. Values are escaped for content and quoted attributes, except {@link Markup} and arrays
 * of it. Control characters, which SVG forbids, become visible.
 */
export function html(parts: TemplateStringsArray, ...values: readonly unknown[]): Markup {
  return new Markup(String.raw({ raw: parts }, ...values.map(written)))
}

const written = (value: unknown): string => {
  if (value instanceof Markup) return String(value)
  return Array.isArray(value) ? value.map(written).join('\n') : escaped(String(value))
}

const escaped = (text: string): string =>
  visible(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
