import { MoeError, type MoeErrorCode, show } from './errors.js'

/**
 * Checks of arguments. Each throws a MoeError that names the operation, the argument, the expected and the actual
 * value.
 */

/**
 * Throws a {@link MoeError}.
 *
 * @example
 * ```ts
 * const half = (n: number) => (n % 2 === 0 ? n / 2 : utils.fail('OPTION', 'half', `n must be even, got ${n}`))
 * console.log(half(8)) // → 4
 * ```
 */
export function fail(code: MoeErrorCode, op: string, text: string): never {
  throw new MoeError(code, op, text)
}

export function checkNumber(op: string, name: string, value: unknown, min = -Infinity, max = Infinity): number {
  if (typeof value === 'number' && Number.isFinite(value) && value >= min && value <= max) return value
  const range = min > -Infinity || max < Infinity ? ` from ${min} to ${max}` : ''
  return fail('OPTION', op, `${name} must be a finite number${range}, got ${show(value)}`)
}

/** A fraction from 0, below 1. */
export function checkRate(op: string, name: string, value: unknown): number {
  const rate = checkNumber(op, name, value, 0, 1)
  if (rate === 1) fail('OPTION', op, `${name} must be below 1, got 1`)
  return rate
}

/**
 * The value, if it is an integer from `min` to `max`. Errors: OPTION.
 *
 * @example
 * ```ts
 * console.log(utils.checkInteger('repeat', 'times', 3, 1)) // → 3
 * ```
 */
export function checkInteger(
  op: string,
  name: string,
  value: unknown,
  min: number,
  max = Number.MAX_SAFE_INTEGER,
): number {
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= min && value <= max) return value
  const range = max < Number.MAX_SAFE_INTEGER ? `from ${min} to ${max}` : `of at least ${min}`
  return fail('OPTION', op, `${name} must be an integer ${range}, got ${show(value)}`)
}

/** An axis of a tensor with `rank` axes, counted from the start. Errors: OPTION. */
export function checkAxis(op: string, axis: unknown, rank: number): number {
  if (rank === 0) fail('OPTION', op, `x has no axes, because its shape is []: axis must be absent, got ${show(axis)}`)
  return (checkInteger(op, 'axis', axis, -rank, rank - 1) + rank) % rank
}

export function checkBoolean(op: string, name: string, value: unknown): boolean {
  if (typeof value === 'boolean') return value
  return fail('OPTION', op, `${name} must be true or false, got ${show(value)}`)
}

export function checkFunction(op: string, name: string, value: unknown): void {
  if (typeof value !== 'function') fail('OPTION', op, `${name} must be a function, got ${show(value)}`)
}

export function checkOneOf<T extends string | boolean>(
  op: string,
  name: string,
  value: unknown,
  allowed: readonly T[],
): T {
  if (allowed.includes(value as T)) return value as T
  const shown = allowed.map((v) => (typeof v === 'string' ? `'${v}'` : v)).join(', ')
  return fail('OPTION', op, `${name} must be one of ${shown}, got ${show(value)}`)
}

/**
 * A copy of an array of at most `maxLength` entries. Reads its length once and its entries by index, because the
 * caller's iterator might never end, and a proxy might later return other values. Errors: `code`.
 *
 * @example
 * ```ts
 * console.log(utils.copyArray('train', 'seeds', [1, 2], 10)) // → [ 1, 2 ]
 * ```
 */
export function copyArray(
  op: string,
  name: string,
  value: unknown,
  maxLength: number,
  code: MoeErrorCode = 'OPTION',
): unknown[] {
  if (!Array.isArray(value)) return fail(code, op, `${name} must be an array, got ${show(value)}`)
  const { length } = value
  if (!(length <= maxLength)) fail(code, op, `${name} must have at most ${maxLength} entries, got ${show(length)}`)
  return Array.from({ length }, (_, i) => value[i])
}

const maxRank = 8
const maxSize = 2 ** 46

/** A frozen copy of a shape. */
export function checkShape(op: string, name: string, value: unknown, example = '[2, 3]'): readonly number[] {
  if (typeof value === 'number') fail('SHAPE', op, `${name} must be an array, for example ${example}, got ${value}`)
  const shape = copyArray(op, name, value, maxRank, 'SHAPE') as number[]
  if (!shape.every((n) => typeof n === 'number' && Number.isInteger(n) && n >= 0)) {
    return fail('SHAPE', op, `${name} must hold non-negative integers, got ${show(shape)}`)
  }
  if (!(shape.reduce((a, b) => a * b, 1) <= maxSize))
    return fail('SHAPE', op, `${name} ${show(shape)} has more than 2^46 elements`)
  return Object.freeze(shape)
}

/**
 * The value, if it can be the name of a file. Errors: OPTION.
 *
 * @example
 * ```ts
 * console.log(utils.checkPath('save', 'runs/model')) // → runs/model
 * ```
 */
export function checkPath(op: string, path: unknown): string {
  if (typeof path !== 'string' || path === '' || path.includes('\0'))
    fail('OPTION', op, `path must be a file name, got ${show(path)}`)
  return path
}

/** A plain object, of any realm. */
export function isPlain(value: object): boolean {
  const prototype = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

export function sizeOf(shape: readonly number[]): number {
  let size = 1
  for (const length of shape) size *= length
  return size
}

/**
 * A shape as error messages show it.
 *
 * @example
 * ```ts
 * console.log(utils.showShape([2, 'tokens', 64])) // → [2, tokens, 64]
 * ```
 */
export const showShape = (shape: readonly (number | string)[]): string => `[${shape.join(', ')}]`

export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}

/**
 * A plain copy of an options object. Unknown names throw, with the nearest known one; `undefined` counts as absent.
 * Getters run once, here.
 */
export function checkOptions<T extends object>(
  op: string,
  value: unknown,
  known: readonly (keyof T & string)[],
): Partial<T> {
  if (value === undefined) return {}
  if (typeof value !== 'object' || value === null || Symbol.iterator in value) {
    return fail('OPTION', op, `options must be an object, got ${show(value)}`)
  }
  const options: Partial<T> = {}
  for (const key of Object.keys(value)) {
    if (!known.includes(key as keyof T & string)) {
      const near = nearest(key, known)
      fail(
        'OPTION',
        op,
        `unknown option ${show(key)}${near ? `; did you mean '${near}'?` : '.'} Known: ${known.join(', ')}`,
      )
    }
    const entry = (value as Record<string, unknown>)[key]
    if (entry !== undefined) options[key as keyof T] = entry as T[keyof T]
  }
  return options
}

const maxListed = 20

/** The first problems of a list, one per line, and the number of further ones. */
export function listed(problems: readonly string[]): string {
  const more = problems.length - maxListed
  const lines = problems.slice(0, maxListed).map((text) => `\n  ${text}`)
  return `${lines.join('')}${more > 0 ? `\n  and ${more} more` : ''}`
}

/** A name; quoted and shortened if it is not readable. */
export const showName = (name: string): string => (/^[\x21-\x7e]{1,100}$/.test(name) ? name : show(name))

/**
 * The candidate nearest to a word, if one is near enough: the "did you mean" of an error message.
 *
 * @example
 * ```ts
 * console.log(utils.nearest('gelo', ['relu', 'gelu', 'silu'])) // → gelu
 * ```
 */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const plain = (text: string) => text.replaceAll('_', '').toLowerCase().slice(0, 64)
  const ranked = candidates.map((name) => ({ name, distance: editDistance(plain(word), plain(name)) }))
  ranked.sort((a, b) => a.distance - b.distance)
  const best = ranked[0]
  return best && best.distance <= Math.max(2, best.name.length / 2) ? best.name : undefined
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)))
    }
    row = next
  }
  return row[b.length]
}

/** Runs `fn`, a check; its error becomes that `what` does not fit. Errors: STATE_DICT, and what is no MoeError. */
export function checkFit<T>(op: string, what: string, fn: () => T): T {
  try {
    return fn()
  } catch (error) {
    if (!(error instanceof MoeError)) throw error
    return fail('STATE_DICT', op, `${what} does not fit: ${error.message.slice(op.length + 3)}`)
  }
}
