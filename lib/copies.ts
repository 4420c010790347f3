import { fail } from './check.js'

/**
 * For a property of objects whose contents are private: structuredClone and postMessage would make an empty object of
 * them. They refuse a symbol, and show it in the text of their DataCloneError.
 */
export const uncloneable = (text: string): symbol => Symbol(text)

/** For `toJSON`, which would be an empty object too. */
export const refuseJson = (name: string, instead: string): never =>
  fail('UNSUPPORTED', `${name}.toJSON`, `the numbers are in native memory and do not go into JSON: ${instead}`)
