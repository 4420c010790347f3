import { checkBoolean, checkInteger, checkNumber, checkOneOf, checkOptions, checkRate, fail } from './check.js'
import { show } from './errors.js'

/**
 * Options, each declared once: a name, a doc comment, a check and a default. A declaration is a plain object of these;
 * the type of the argument and of the checked values follow from it.
 */

/** A required option. */
export interface Needed<V> {
  /**
   * Returns the value, or throws an error that names `op` and `name`. Options declared earlier are in `others`,
   * checked.
   */
  check(op: string, name: string, value: unknown, others: OtherOptions, isDefault?: boolean): V
}

/** An option with a default. */
export interface Option<V> extends Needed<V> {
  /** The default, or a function of the options declared before it. */
  readonly default: V | ((others: OtherOptions) => V)
}

/** Values of the options declared before one, checked. */
export type OtherOptions = Readonly<Record<string, unknown>>
/** DeclaredOptions options by name. */
export type DeclaredOptions = Readonly<Record<string, Needed<unknown>>>

type Value<O> = O extends Needed<infer V> ? V : never
type Named<O, N extends keyof O> = { [K in N]: Value<O[K]> }
type Optional<O, N extends keyof O> = { [K in N]?: Exclude<Value<O[K]>, undefined> }
type OptionalNames<O> = { [N in keyof O]: O[N] extends Option<unknown> ? N : never }[keyof O]

/** The type of the argument, with the doc comments of the declaration. */
export type OptionsOf<O> = Named<O, Exclude<keyof O, OptionalNames<O>>> & Optional<O, OptionalNames<O>>

/** Checked values of several declarations. */
export type ValuesOf<D extends readonly DeclaredOptions[]> = D extends readonly [
  infer O,
  ...infer Rest extends DeclaredOptions[],
]
  ? Named<O, keyof O> & ValuesOf<Rest>
  : unknown

/**
 * Returns the reader of declared options: `(op, passed)` to checked values, a plain copy. It throws OPTION for an unknown
 * name, with the nearest known one, and what the check of an option throws.
 *
 * @example
 * ```ts
 * const read = utils.reader({ width: utils.integer({ min: 1 }), bias: utils.boolean({ default: true }) })
 * console.log(read('Layer', { width: 64 })) // → { width: 64, bias: true }
 * ```
 */
export function reader<D extends readonly DeclaredOptions[]>(
  ...declared: D
): (op: string, passed: unknown) => ValuesOf<D> {
  const options: DeclaredOptions = Object.assign({}, ...declared)
  const names = Object.keys(options)
  const entries = Object.entries(options)
  const empty: OtherOptions = Object.fromEntries(names.map((name) => [name, undefined])) // objects of one shape are fast
  return (op, passed) => {
    const given: OtherOptions = checkOptions(op, passed, names)
    const values: Record<string, unknown> = { ...empty }
    for (const name of Object.keys(given)) values[name] = given[name]
    for (const [name, option] of entries) {
      const passed = values[name]
      const isDefault = passed === undefined
      values[name] = option.check(op, name, isDefault ? defaultOf(option, values) : passed, values, isDefault)
    }
    return values as ValuesOf<D>
  }
}

/**
 * The default of an option for values of those declared earlier.
 *
 * @example
 * ```ts
 * console.log(utils.defaultOf(moeOptions.gatingTopN, {})) // → 2
 * ```
 */
export function defaultOf(option: Needed<unknown> | Option<unknown>, others: OtherOptions): unknown {
  if (!('default' in option)) return undefined
  return typeof option.default === 'function' ? option.default(others) : option.default
}

/** The checked values of `source`, which must have all of them. `prefix` is before their names in errors. */
export function checkValues<O extends DeclaredOptions>(
  op: string,
  source: object,
  declared: O,
  prefix = '',
): Named<O, keyof O> {
  const values: Record<string, unknown> = {}
  for (const name of Object.keys(declared))
    values[name] = declared[name].check(op, `${prefix}${name}`, (source as OtherOptions)[name], values)
  return values as Named<O, keyof O>
}

/**
 * The values that `declared` names, to pass on. Write named properties before a spread: V8 takes µs for those after.
 *
 * @example
 * ```ts
 * const layer = { width: utils.integer({ min: 1 }) }
 * const read = utils.reader(layer, { steps: utils.integer({ min: 1, default: 100 }) })
 * console.log(utils.pick(read('train', { width: 64 }), layer)) // → { width: 64 }
 * ```
 */
export function pick<D extends readonly DeclaredOptions[]>(values: ValuesOf<D>, ...declared: D): ValuesOf<D> {
  const picked: Record<string, unknown> = {}
  for (const options of declared) for (const name of Object.keys(options)) picked[name] = (values as OtherOptions)[name]
  return picked as ValuesOf<D>
}

type Default<V> = Option<V>['default']

/** The range of {@link utils.integer}. */
export interface IntegerRange {
  /** The smallest value. */
  min: number
  /** The largest value. */
  max?: number
  /** The name of an option declared earlier whose value is the largest. */
  atMost?: string
}

/** The range of {@link utils.number}. */
export interface NumberRange {
  /** The smallest value. */
  min?: number
  /** The largest value. */
  max?: number
}

/** An option of {@link utils.integer} with a default. */
export interface IntegerOption extends Option<number> {
  /** The smallest value. */
  min: number
  /** The largest value. */
  max?: number
}

/** An option of {@link utils.oneOf}. */
export interface WordOption<T> extends Option<T> {
  /** The values that pass. */
  allowed: readonly T[]
}

/**
 * An integer. `atMost` names an option declared earlier that bounds it.
 *
 * @example
 * ```ts
 * const read = utils.reader({ steps: utils.integer({ min: 1, default: 100 }) })
 * console.log(read('train', {}).steps) // → 100
 * ```
 */
export function integer(range: IntegerRange & { default: Default<number> }): IntegerOption
export function integer(range: IntegerRange): Needed<number>
export function integer({
  min,
  max,
  atMost,
  ...rest
}: IntegerRange & { default?: Default<number> }): Needed<number> & IntegerRange {
  return {
    ...rest,
    min,
    max,
    check(op, name, value, others, isDefault) {
      if (atMost === undefined) return checkInteger(op, name, value, min, max)
      const limit = Math.min(...[others[atMost] as number | readonly number[]].flat())
      const got = checkInteger(op, name, value, min)
      if (got > limit)
        fail(
          'OPTION',
          op,
          `${name} must be at most ${atMost} = ${limit}, got ${got}${isDefault ? ' (the default)' : ''}`,
        )
      return checkInteger(op, name, got, min, max)
    },
  }
}

/**
 * A finite number.
 *
 * @example
 * ```ts
 * const read = utils.reader({ temperature: utils.number({ min: 0, default: 1 }) })
 * console.log(read('sample', { temperature: 0.7 }).temperature) // → 0.7
 * ```
 */
export function number(range: NumberRange & { default: number }): Option<number>
export function number(range: NumberRange): Needed<number>
export function number({ min, max, ...rest }: NumberRange & { default?: number }): Needed<number> {
  return { ...rest, check: (op, name, value) => checkNumber(op, name, value, min, max) }
}

/** A fraction from 0, below 1, by default 0. */
export const rate = (): Option<number> => ({ default: 0, check: checkRate })

/**
 * An option that may be absent: its value is then undefined.
 *
 * @example
 * ```ts
 * const read = utils.reader({ seed: utils.optional(utils.integer({ min: 0 })) })
 * console.log(read('sample', {}).seed) // → undefined
 * ```
 */
export const optional = <V>(option: Needed<V>): Option<V | undefined> => ({
  default: undefined,
  check: (op, name, value, others) => (value === undefined ? undefined : option.check(op, name, value, others)),
})

/**
 * true or false.
 *
 * @example
 * ```ts
 * const read = utils.reader({ bias: utils.boolean({ default: true }) })
 * console.log(read('Layer', { bias: false }).bias) // → false
 * ```
 */
export const boolean = (rest: { default: boolean }): Option<boolean> => ({ ...rest, check: checkBoolean })

/**
 * One of several words, or true, or false.
 *
 * @example
 * ```ts
 * const read = utils.reader({ reduction: utils.oneOf(['mean', 'sum'], { default: 'mean' }) })
 * console.log(read('loss', {}).reduction) // → mean
 * ```
 */
export const oneOf = <T extends string | boolean>(
  allowed: readonly T[],
  rest: { default: Default<NoInfer<T>> },
): WordOption<T> => ({
  ...rest,
  allowed,
  check: (op, name, value) => checkOneOf(op, name, value, allowed),
})

/**
 * Options that have a meaning only if `why` returns null; else it says why they have none, and only the defaults pass.
 * Options declared earlier are in `others`, checked.
 */
export function onlyWhere<O extends Record<string, Option<unknown>>>(
  why: (others: OtherOptions) => string | null,
  options: O,
): O {
  const entries = Object.entries(options).map(([name, option]): [string, Option<unknown>] => [
    name,
    {
      ...option,
      check(op, name, value, others, isDefault) {
        const reason = why(others)
        if (reason === null) return option.check(op, name, value, others, isDefault)
        if (value !== defaultOf(option, others)) fail('OPTION', op, `${name} ${reason}`)
        return value
      },
    },
  ])
  return Object.fromEntries(entries) as O
}

/** Options for some values of another. */
export const onlyIf = <O extends Record<string, Option<unknown>>>(
  other: string,
  values: readonly unknown[],
  options: O,
): O =>
  onlyWhere(({ [other]: given }) => {
    if (given === undefined || values.includes(given)) return null
    return `is for ${other} ${values.map(show).join(' or ')}, got ${other} ${show(given)}`
  }, options)

/** Options for another that is given, and not 0. */
export const onlyIfSet = <O extends Record<string, Option<unknown>>>(other: string, options: O): O =>
  onlyWhere(({ [other]: given }) => (given ? null : `needs ${other}, got ${show(given)}`), options)

/**
 * Any value. Its user checks it, because the check depends on more than options.
 *
 * @example
 * ```ts
 * const read = utils.reader({ onStep: utils.unchecked<(step: number) => void>() })
 * console.log(read('train', {}).onStep) // → undefined
 * ```
 */
export function unchecked<T>(rest: { default: T }): Option<T>
export function unchecked<T>(): Option<T | undefined>
export function unchecked<T>(rest: { default: T | undefined } = { default: undefined }): Option<T | undefined> {
  return { ...rest, check: (_op, _name, value) => value as T | undefined }
}
