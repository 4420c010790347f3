/** The part of a growing text before the first of some stops, without what may become one. */
export class TextStop {
  found = false
  #held = ''
  readonly #stops: readonly string[]

  constructor(stops: readonly string[]) {
    this.#stops = stops
  }

  /** What is certain now. */
  write(text: string, last: boolean): string {
    if (this.#stops.length === 0) return text
    const seen = this.#held + text
    const at = Math.min(...this.#stops.map((stop) => seen.indexOf(stop)).filter((index) => index >= 0))
    if (at < Number.POSITIVE_INFINITY) {
      this.found = true
      return seen.slice(0, at)
    }
    const kept = last ? 0 : Math.max(...this.#stops.map((stop) => overlap(seen, stop)))
    this.#held = seen.slice(seen.length - kept)
    return seen.slice(0, seen.length - kept)
  }
}

/** The length of the longest end of `text` that `stop` begins with. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--)
    if (text.endsWith(stop.slice(0, length))) return length
  return 0
}
