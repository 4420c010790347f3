import { checkNumber, copyArray, fail } from '../runtime/check.js'
import type { Option } from '../runtime/options.js'

/** An option that groups only read, because it decides the state. */
export interface ReadOnlyOption<V> extends Option<V> {
  /** Tells it from the others. */
  readonly readOnly: true
}

/** Makes an option one that groups only read. */
export const readOnly = <V>(option: Option<V>): ReadOnlyOption<V> => ({ ...option, readOnly: true })

/** Two numbers of at least 0, or what `check` allows. */
export const pair = (
  rest: { default: readonly [number, number] },
  check = (op: string, name: string, value: unknown) => checkNumber(op, name, value, 0),
): Option<readonly [number, number]> => ({
  ...rest,
  check(op, name, value) {
    const given = copyArray(op, name, value, 2)
    if (given.length !== 2) fail('OPTION', op, `${name} must be two numbers, got ${given.length}`)
    const [first, second] = given.map((one, i) => check(op, `${name}[${i}]`, one))
    return [first, second]
  },
})

/** A decay rate, in [0, 1). `kind` says in errors what it may also be. */
export function checkDecay(op: string, name: string, value: unknown, kind = ''): number {
  const decay = checkNumber(op, name, value, 0)
  return decay < 1 ? decay : fail('OPTION', op, `${name} must be ${kind}below 1, got ${decay}`)
}

/** The decay rates of two moments, each in [0, 1). */
export const decays = (rest: { default: readonly [number, number] }): Option<readonly [number, number]> =>
  pair(rest, checkDecay)

/** Passes `betas` to an op as `beta1` and `beta2`. */
export const withBetas = <V extends { betas: readonly [number, number] }>({ betas: [beta1, beta2], ...others }: V) => ({
  beta1,
  beta2,
  ...others,
})
