import { utils } from '../lib/index.js'

/** Validates one value, of a flag or a file. */
export interface Rule<T = unknown> {
  accepts(value: unknown): value is T
  /** The error for a rejected value, such as `must be a whole number from 1 to 9`. */
  must(value: unknown): string
}

export interface NumberRules {
  min: number
  max?: number
  /** Accepts fractions. */
  real?: true
}

export function numberRule({ min, max, real }: NumberRules): Rule<number> {
  const most = max ?? (real ? Number.MAX_VALUE : Number.MAX_SAFE_INTEGER)
  const exceeds = (value: unknown): boolean => typeof value === 'number' && value > most
  return {
    accepts: (value): value is number =>
      typeof value === 'number' && value >= min && value <= most && (real || Number.isInteger(value)),
    must(value) {
      if (min === max) return `must be ${min}`
      const range = max !== undefined || exceeds(value) ? `from ${min} to ${most}` : `of at least ${min}`
      return `must be ${real ? 'a number' : 'a whole number'} ${range}`
    },
  }
}

/** A string that matches a pattern; `must` describes it. */
export const textRule = (pattern: RegExp, must: string): Rule<string> => ({
  accepts: (value): value is string => typeof value === 'string' && pattern.test(value),
  must: () => must,
})

/** What is wrong with a value of a file: its position, and what it must be. */
export interface Mismatch {
  at: string
  must: string
}

/** Null for a valid value. */
export type Schema = (value: unknown) => Mismatch | null

const mismatch = (value: unknown, must: string): Mismatch => ({ at: '', must: `${must}, got ${utils.show(value)}` })
const within = (at: string, found: Mismatch | null): Mismatch | null => found && { ...found, at: at + found.at }

export const one =
  (rule: Rule): Schema =>
  (value) =>
    rule.accepts(value) ? null : mismatch(value, rule.must(value))

/** An entry of a record that may be missing. */
export const ifGiven =
  (schema: Schema): Schema =>
  (value) =>
    value === undefined ? null : schema(value)

/** An array of `min` to `max` entries. */
export const list =
  (entry: Schema, min: number, max = min): Schema =>
  (value) => {
    if (!Array.isArray(value)) return mismatch(value, 'must be an array')
    const length = one(numberRule({ min, max }))(value.length)
    if (length) return within('.length', length)
    for (let i = 0; i < value.length; i++) {
      const found = entry(value[i])
      if (found) return within(`[${i}]`, found)
    }
    return null
  }

/** An object with these entries and no others. */
export const record =
  (entries: Record<string, Schema>): Schema =>
  (value) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return mismatch(value, 'must be an object')
    for (const key of Object.keys(value)) {
      if (!Object.hasOwn(entries, key)) return { at: '', must: `must not have an entry ${utils.show(key)}` }
    }
    for (const [key, entry] of Object.entries(entries)) {
      const found = entry(Object.hasOwn(value, key) ? (value as Record<string, unknown>)[key] : undefined)
      if (found) return within(`.${key}`, found)
    }
    return null
  }

/** The message for a mismatch in a record. */
export const explain = ({ at, must }: Mismatch): string => `${at.slice(1) || 'it'} ${must}`
