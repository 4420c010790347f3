import { writeSync } from 'node:fs'

const given = new Set<string>()

/**
 * Writes a warning to standard error, each text once per thread, unless the environment has ST_MOE_NO_WARNINGS. At once:
 * the loops that need it may never return to Node, which would print it later.
 */
export function warn(text: string): void {
  if (given.has(text)) return
  given.add(text)
  if (process.env.ST_MOE_NO_WARNINGS) return
  try {
    writeSync(2, `[st-moe] warning: ${text} (ST_MOE_NO_WARNINGS=1 silences this)\n`)
  } catch {
    // Standard error is closed, or full.
  }
}

/** Counts what is alive, and warns when it becomes more than `most`. */
export class Alive {
  #count = 0
  readonly #most: number
  readonly #text: string

  constructor(most: number, text: string) {
    this.#most = most
    this.#text = text
  }

  add(): void {
    if (++this.#count > this.#most) warn(this.#text)
  }

  remove(): void {
    this.#count--
  }
}
