/** Two tokens that are one. */
export type BytePair = readonly [first: number, second: number]

/**
 * Letters, digits and signs with the space before them, and whitespace: no token crosses their ends. Their length is
 * limited, so that the time to encode a text is proportional to its length.
 */
export const words = / ?\p{L}{1,64}| ?\p{N}{1,64}| ?[^\s\p{L}\p{N}]{1,64}|\s{1,64}/gu
/** The same, where CR LF counts as LF. */
const wordsOfLines = / ?\p{L}{1,64}| ?\p{N}{1,64}| ?[^\s\p{L}\p{N}]{1,64}|(?:\r\n|\s){1,64}/gu
/** So that a file of pairs cannot make tokens that double in length. */
export const maxBytesOfToken = 256
const shift = 2 ** 20

/** A number for a pair of tokens; a lower one for lower tokens. */
export const keyOf = (first: number, second: number): number => first * shift + second
const pairOf = (key: number): BytePair => [Math.floor(key / shift), key % shift]

/** The last place of a text where a word begins, if the text begins with one, whatever follows: 0 if there is none. */
export function lastWordIn(text: string): number {
  let at = Math.max(text.lastIndexOf(' '), text.lastIndexOf('\n'))
  while (at > 0 && /\s/.test(text[at - 1])) at--
  if (at <= 0) for (const { index } of text.matchAll(wordsOfLines)) at = index
  return Math.max(at, 0)
}

/** What {@link WordCounts} holds at most: the different words of any text of 64 MiB. Merging takes 2 GB at most. */
const limits = { words: 2 ** 23, bytes: 2 ** 26 }

/** How often each word of a text occurs. If there are too many different ones, it forgets the rarest. */
export class WordCounts {
  readonly #counts = new Map<string, number>()
  readonly #limits: typeof limits
  #bytes = 0
  #rare = 0

  constructor(most = limits) {
    this.#limits = most
  }

  /** Counts the words of a text that begins and ends where words do. */
  add(text: string): void {
    const counts = this.#counts
    for (const [word] of text.matchAll(words)) {
      const count = counts.get(word)
      if (count === undefined) this.#addNew(Buffer.from(word))
      else counts.set(word, count + 1)
    }
  }

  /** `bytes`: a copy, because a part of a string keeps all of it in memory. */
  #addNew(bytes: Buffer): void {
    const word = bytes.toString()
    this.#counts.set(word, (this.#counts.get(word) ?? 0) + 1)
    this.#bytes += bytes.length
    while (this.#counts.size >= this.#limits.words || this.#bytes > this.#limits.bytes) this.#forget()
  }

  #forget(): void {
    this.#rare++
    for (const [word, count] of this.#counts) {
      if (count > this.#rare) continue
      this.#counts.delete(word)
      this.#bytes -= Buffer.byteLength(word)
    }
  }

  /** Each word as bytes, and how often it occurs; empties the counts. */
  take(): PairCounts {
    const ends = new Uint32Array(this.#counts.size)
    const tokens = new Int32Array(this.#bytes)
    const counts = new Float64Array(this.#counts.size)
    let [i, end] = [0, 0]
    for (const [word, count] of this.#counts) {
      const bytes = Buffer.from(word)
      tokens.set(bytes, end)
      end += bytes.length
      counts[i] = count
      ends[i++] = end
    }
    this.#counts.clear()
    return new PairCounts(tokens, ends, counts)
  }
}

/** A pair and how often it occurred when it was noted. */
interface Noted {
  key: number
  count: number
}

/** Whether `a` comes before `b`: it occurs more often, or as often and is lower. */
const isBefore = (a: Noted, b: Noted): boolean => a.count > b.count || (a.count === b.count && a.key < b.key)

/** How often pairs of tokens occur in the words of a text. */
class PairCounts {
  /** The tokens of the words, each from the end of the one before; a word that gets shorter keeps its place. */
  readonly #tokens: Int32Array
  readonly #starts: Uint32Array
  readonly #ends: Uint32Array
  readonly #counts: Float64Array
  /** Bytes of each token. */
  readonly #lengths: number[] = Array(256).fill(1)
  readonly #pairs = new Map<number, number>()
  /** Words that have, or had, a pair. */
  readonly #where = new Map<number, number[]>()
  readonly #queue = new Heap()
  /** Pairs whose count grew. */
  readonly #grown = new Set<number>()

  constructor(tokens: Int32Array, ends: Uint32Array, counts: Float64Array) {
    this.#tokens = tokens
    this.#ends = ends
    this.#starts = Uint32Array.from(ends, (_, i) => (i === 0 ? 0 : ends[i - 1]))
    this.#counts = counts
    for (let i = 0; i < ends.length; i++) {
      for (let j = this.#starts[i] + 1; j < ends[i]; j++) this.#change(keyOf(tokens[j - 1], tokens[j]), counts[i], i)
    }
    this.#noteGrown()
  }

  /** The pairs that are the most frequent, one after another, at most `most` while one occurs twice; on ties the lowest. */
  *merges(most: number): Generator<BytePair, void, void> {
    for (let found = 0; found < most; ) {
      const next = this.#queue.pop()
      if (next === undefined) return
      const count = this.#pairs.get(next.key) ?? 0
      if (count === next.count) {
        this.#merge(next.key)
        found++
        yield pairOf(next.key)
      } else if (count > 1) this.#queue.push({ key: next.key, count })
    }
  }

  #merge(key: number): void {
    const token = this.#lengths.push(this.#lengthOf(key)) - 1
    const where = this.#where.get(key)!
    this.#where.delete(key)
    for (const i of where) this.#mergeIn(i, pairOf(key), token)
    this.#noteGrown()
  }

  /** Puts `token` in the place of each occurrence of a pair in word i, from the left. */
  #mergeIn(i: number, [first, second]: BytePair, token: number): void {
    const tokens = this.#tokens
    const [start, end, count] = [this.#starts[i], this.#ends[i], this.#counts[i]]
    let to = start
    let before = false // whether the token before is a new one
    for (let from = start; from < end; from++) {
      const merges = tokens[from] === first && from + 1 < end && tokens[from + 1] === second
      if (from > start && (merges || before)) {
        this.#change(keyOf(before ? second : tokens[to - 1], tokens[from]), -count, i)
        this.#change(keyOf(tokens[to - 1], merges ? token : tokens[from]), count, i)
      }
      if (merges) this.#change(keyOf(first, second), -count, i)
      tokens[to++] = merges ? token : tokens[from]
      if (merges) from++
      before = merges
    }
    this.#ends[i] = to
  }

  #lengthOf(key: number): number {
    const [first, second] = pairOf(key)
    return this.#lengths[first] + this.#lengths[second]
  }

  #change(key: number, by: number, word: number): void {
    const count = (this.#pairs.get(key) ?? 0) + by
    if (count > 0) this.#pairs.set(key, count)
    else this.#pairs.delete(key)
    if (by < 0) return
    this.#grown.add(key)
    const where = this.#where.get(key)
    if (where === undefined) this.#where.set(key, [word])
    else if (where[where.length - 1] !== word) where.push(word)
  }

  #noteGrown(): void {
    for (const key of this.#grown) {
      const count = this.#pairs.get(key) ?? 0
      if (count > 1 && this.#lengthOf(key) <= maxBytesOfToken) this.#queue.push({ key, count })
      else this.#where.delete(key) // it will not grow: later pairs have later tokens
    }
    this.#grown.clear()
  }
}

/** A binary heap: the pair that comes before all others is first. */
class Heap {
  readonly #items: Noted[] = []

  push(item: Noted): void {
    const items = this.#items
    let i = items.push(item) - 1
    while (i > 0) {
      const parent = (i - 1) >> 1
      if (!isBefore(item, items[parent])) break
      items[i] = items[parent]
      i = parent
    }
    items[i] = item
  }

  pop(): Noted | undefined {
    const items = this.#items
    const top = items[0]
    const item = items.pop()
    if (item === undefined || items.length === 0) return top
    let i = 0
    for (;;) {
      let child = 2 * i + 1
      if (child + 1 < items.length && isBefore(items[child + 1], items[child])) child++
      if (child >= items.length || !isBefore(items[child], item)) break
      items[i] = items[child]
      i = child
    }
    items[i] = item
    return top
  }
}
