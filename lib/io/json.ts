import { fail, isPlain } from '../runtime/check.js'
import { MoeError, show } from '../runtime/errors.js'
import { type Routine, readWhole, runSync } from './files.js'

/**
 * JSON that restores exactly the value that was written, of any depth. Reads and writes share the same limits, which
 * keep a parsed value below 1 GB.
 */

/** Characters of a text. */
const maxLength = 2 ** 26
/** An object, an array, a string or a key counts as eight values, because it takes more memory. */
const maxValues = 2 ** 23
const heavy = 8

const tooMany = `at most ${maxValues} values, an object, array, string or key counted as ${heavy}, it holds more`
/** A comma precedes every value except the first of an array or object. */
const weights: Record<string, number> = { ',': 1, '{': heavy, '[': heavy }

/** An object or array that is being written. */
interface Level {
  value: Record<string | number, unknown>
  /** Null for an array. */
  keys: readonly string[] | null
  length: number
  at: number
  empty: boolean
}

/**
 * Serializes an object; omits undefined properties. Any other value that JSON cannot represent is an OPTION error that
 * names its position. `largest` is the property to blame if the text is too large.
 */
export function toJson(op: string, value: object, largest: string): string {
  return new Writer(op, largest).write(value)
}

class Writer {
  readonly #op: string
  readonly #largest: string
  readonly #levels: Level[] = []
  readonly #above = new Set<unknown>()
  readonly #parts: string[] = []
  #text = ''
  #length = 0
  #values = 0

  constructor(op: string, largest: string) {
    this.#op = op
    this.#largest = largest
  }

  write(value: unknown): string {
    this.#put(value)
    for (let level = this.#levels.at(-1); level; level = this.#levels.at(-1)) {
      if (level.at === level.length) this.#leave(level)
      else this.#next(level)
    }
    this.#flush()
    return this.#text
  }

  #next(level: Level): void {
    const { keys } = level
    const key = keys === null ? level.at : keys[level.at]
    level.at++
    const value = level.value[key]
    if (keys !== null && value === undefined) return
    if (keys !== null) this.#count(1)
    this.#append(`${level.empty ? '' : ','}${keys === null ? '' : `${this.#quoted(key as string)}:`}`)
    level.empty = false
    this.#put(value)
  }

  #put(value: unknown): void {
    if (typeof value === 'number' && !Number.isNaN(value)) this.#append(numeral(value))
    else if (typeof value === 'string') this.#append(this.#quoted(value))
    else if (typeof value === 'boolean' || value === null) this.#append(String(value))
    else if (typeof value === 'object') this.#enter(value as Level['value'])
    else this.#refuse(show(value))
  }

  #enter(value: Level['value']): void {
    if (this.#above.has(value)) this.#refuse('an object that contains itself')
    const isArray = Array.isArray(value)
    if (!isArray && !isPlain(value)) this.#refuse(show(value))
    if (isArray) this.#count(value.length)
    const keys = Object.keys(value)
    if (isArray && keys.length !== value.length) this.#refuse('an array with holes or with names')
    if (Object.getOwnPropertySymbols(value).length > 0) this.#refuse('an object with symbols')
    this.#count(heavy)
    this.#above.add(value)
    this.#levels.push({ value, keys: isArray ? null : keys, length: keys.length, at: 0, empty: true })
    this.#append(isArray ? '[' : '{')
  }

  #leave({ value, keys }: Level): void {
    this.#append(keys === null ? ']' : '}')
    this.#levels.pop()
    this.#above.delete(value)
  }

  #quoted(text: string): string {
    if (text.length > maxLength) this.#tooLong()
    this.#count(heavy)
    return JSON.stringify(text)
  }

  #count(weight: number): void {
    this.#values += weight
    if (this.#values > maxValues) fail('OPTION', this.#op, `${this.#largest} must hold ${tooMany}`)
  }

  #append(text: string): void {
    this.#length += text.length
    if (this.#length > maxLength) this.#tooLong()
    this.#parts.push(text)
    if (this.#parts.length === 4096) this.#flush()
  }

  #flush(): void {
    this.#text += this.#parts.join('')
    this.#parts.length = 0
  }

  #tooLong(): never {
    return fail('OPTION', this.#op, `${this.#largest} exceeds ${maxLength} characters of JSON`)
  }

  #refuse(got: string): never {
    const steps = this.#levels.map(({ keys, at }) => (keys === null ? `[${at - 1}]` : keyed(keys[at - 1])))
    const shown = steps.length > 20 ? [...steps.slice(0, 10), ' … ', ...steps.slice(-10)] : steps
    return fail('OPTION', this.#op, `${shown.join('').replace(/^\./, '')} must survive JSON, got ${got}`)
  }
}

/** Numbers beyond the largest are read as infinite. */
function numeral(value: number): string {
  if (Number.isFinite(value)) return Object.is(value, -0) ? '-0' : String(value)
  return value < 0 ? '-1e999' : '1e999'
}

const keyed = (key: string): string => (/^[A-Za-z_$][\w$]{0,59}$/.test(key) ? `.${key}` : `[${show(key)}]`)

/** Parses a JSON text; throws if it exceeds the limits of {@link toJson}. */
export function fromJson(text: string): unknown {
  if (text.length > maxLength) throw new Error(`it has more than ${maxLength} characters`)
  if (text.length > maxValues / heavy && valuesIn(text) > maxValues) throw new Error(`it must hold ${tooMany}`)
  return JSON.parse(text)
}

/** The JSON in a file of at most `maxBytes`. Errors: FILE_FORMAT, FILE_SYSTEM. */
export const readJson = (op: string, path: string, maxBytes?: number): unknown => runSync(jsonIn(op, path, maxBytes))

/** The same on behalf of a routine. */
export function* jsonIn(op: string, path: string, maxBytes = maxLength): Routine<unknown> {
  const text = (yield* readWhole(op, path, maxBytes)).toString()
  try {
    return fromJson(text)
  } catch (cause) {
    throw new MoeError('FILE_FORMAT', op, `${path} must hold JSON: ${(cause as Error).message}`, { cause })
  }
}

function valuesIn(text: string): number {
  let count = 0
  let inString = false
  for (let at = 0; at < text.length; at++) {
    const character = text[at]
    if (character === '"') {
      inString = !inString
      if (inString) count += heavy
    } else if (!inString) count += weights[character] ?? 0
    else if (character === '\\') at++
  }
  return count
}
