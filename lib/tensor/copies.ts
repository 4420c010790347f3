import { fail } from '../runtime/check.js'

/**
 * The value of a property of objects with private contents, which structuredClone and postMessage would copy as empty
 * objects. Both reject a symbol and show it in their DataCloneError.
 */
export const uncloneable = (text: string): symbol => Symbol(text)

/** For `toJSON`, which would return an empty object too. */
export const refuseJson = (name: string, instead: string): never =>
  fail('UNSUPPORTED', `${name}.toJSON`, `the values are in native memory and JSON would lose them: ${instead}`)
