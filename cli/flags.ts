import { languageModelOptions } from '../language-model/index.js'
import { pluginNames } from '../lib/doctor/index.js'
import { utils } from '../lib/index.js'
import { UsageError } from './errors.js'
import { type NumberRules, numberRule, type Rule, textRule } from './rules.js'

/** One flag of a command and how its value is parsed. */
export interface Flag<T> {
  help: string
  /** The placeholder of the value in the help; a flag without it is a switch. */
  value?: string
  default: T
  /** The default as the help shows it; '' shows none. */
  shown: string
  /** Another name. */
  alias?: string
  /** A letter that stands for it, as in `-n 4`. */
  letter?: string
  /** Validates the value, here and in the file that stores it. */
  rule: Rule<T>
  /** Parses a text; `rule` validates the result. */
  read(text: string): unknown
}

export type Flags = Record<string, Flag<unknown>>
export type Values<F extends Flags> = { [K in keyof F]: F[K] extends Flag<infer T> ? T : never }

export interface Parsed<F extends Flags> {
  /** The given values, and the defaults of the rest. */
  values: Values<F>
  given: Partial<Values<F>>
  positionals: string[]
  help: boolean
}

const decimal = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i
const readNumber = (text: string): number => (decimal.test(text.trim()) ? Number(text) : Number.NaN)

type NumberFlag = NumberRules & { help: string; alias?: string; letter?: string }

/** A number within a range. */
export const number = (flag: NumberFlag & { default: number }): Flag<number> => ({
  ...flag,
  value: 'N',
  shown: String(flag.default),
  rule: numberRule(flag),
  read: readNumber,
})

/** A number that is null by default. */
export const optionalNumber = (flag: NumberFlag & { shown: string }): Flag<number | null> => {
  const { accepts, must } = numberRule(flag)
  return {
    ...flag,
    value: 'N',
    default: null,
    rule: { accepts: (value): value is number | null => value === null || accepts(value), must },
    read: readNumber,
  }
}

/** Any text except the empty one. */
export const text = <D extends string | null>(flag: { help: string; value: string; default: D }): Flag<string | D> => ({
  ...flag,
  shown: flag.default ?? '',
  rule: textRule(/./s, 'must not be empty'),
  read: (text) => text,
})

/** One of a few words. */
export const oneOf = <T extends string>(flag: { help: string; allowed: readonly T[]; default: T }): Flag<T> => ({
  ...flag,
  value: 'NAME',
  shown: flag.default,
  rule: {
    accepts: (value): value is T => flag.allowed.includes(value as T),
    must: () => `must be one of ${flag.allowed.join(', ')}`,
  },
  read: (text) => text,
})

/** One of the words of an option of a layer, with its default. The help leaves out those that a command refuses. */
export const wordOf = <T extends string>(
  option: utils.WordOption<T>,
  { help, refused = [] }: { help: string; refused?: readonly T[] },
): Flag<T> =>
  oneOf({
    help: `${help}: ${option.allowed.filter((word) => !refused.includes(word)).join(', ')}`,
    allowed: option.allowed,
    default: utils.defaultOf(option, {}) as T,
  })

/** An integer of an option of the library, with its limits and default. */
export const integerOf = (
  option: utils.IntegerOption,
  { help, alias }: { help: string; alias?: string },
): Flag<number> =>
  number({
    help,
    default: utils.defaultOf(option, {}) as number,
    min: option.min,
    ...(option.max && { max: option.max }),
    ...(alias && { alias }),
  })

/** A switch. */
export const toggle = (help: string): Flag<boolean> => ({
  help,
  default: false,
  shown: '',
  rule: { accepts: (value): value is boolean => typeof value === 'boolean', must: () => 'must be true or false' },
  read: () => true,
})

function isDevice(text: string): boolean {
  const [, name] = /^([^:]+)(?::\d{1,4})?$/.exec(text) ?? []
  return text === 'cpu' || (name !== undefined && pluginNames().includes(name))
}

export const deviceFlag: Flag<string> = {
  help: 'cpu, cuda or cuda:N', // those of ST_MOE_PLUGINS have names of their own
  value: 'NAME',
  default: 'cpu',
  shown: 'cpu',
  rule: {
    accepts: (value): value is string => typeof value === 'string' && isDevice(value),
    must: () =>
      `must be cpu, ${pluginNames()
        .flatMap((name) => [name, `${name}:N`])
        .join(' or ')}`,
  },
  read: (text) => text,
}

export const threadsFlag = optionalNumber({
  help: 'CPU threads; do not change the results',
  shown: 'all',
  min: 1,
  max: 256,
})

/** A port of this machine. */
export const portFlag = (help: string): Flag<number | null> =>
  optionalNumber({ help, shown: 'a free one', min: 1, max: 65535 })

export const computeDtypeFlag = oneOf({
  help: 'f32, bf16, bf16x3 or f16: dtype of GEMM operands',
  allowed: languageModelOptions.computeDtype.allowed,
  default: 'f32',
})

/** An error that names the unknown word and the nearest known one. */
export function unknownWord(what: string, word: string, known: readonly string[]): UsageError {
  const near = utils.nearest(word, known)
  const shown = word.length > 60 ? `${word.slice(0, 57)}...` : word
  return new UsageError(`unknown ${what} ${shown}${near ? `; did you mean ${near}?` : ''}`)
}

/**
 * Parses `--flag value`, `--flag=value`, switches and positional arguments. Everything after `--` is positional; if
 * `isProgram`, everything after the first positional argument is, too.
 */
export function parseFlags<F extends Flags>(flags: F, args: readonly string[], isProgram = false): Parsed<F> {
  const given: Record<string, unknown> = {}
  const positionals: string[] = []
  let help = false
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]
    if (arg === '--') {
      positionals.push(...args.slice(i + 1))
      break
    }
    if (isProgram && !arg.startsWith('-')) {
      positionals.push(...args.slice(i))
      break
    }
    if (arg === '-h' || arg === '--help') help = true
    else if (!arg.startsWith('-') || arg === '-') positionals.push(arg)
    else {
      const [, word, inline] = /^--?([^=]*)(?:=(.*))?$/s.exec(arg)!
      const name = nameOf(flags, arg, word)
      const { value, rule, read } = flags[name]
      if (value === undefined) {
        if (inline !== undefined) throw new UsageError(`--${name} is a switch and takes no value, got '${inline}'`)
        given[name] = true
        continue
      }
      const follows = args[i + 1]
      const isValue = follows !== undefined && !follows.startsWith('--')
      if (inline === undefined && !isValue) throw new UsageError(`--${name} needs a value: --${name} ${value}`)
      if (inline === undefined) i++
      const text = inline ?? follows
      const meant = read(text)
      if (!rule.accepts(meant)) throw new UsageError(`--${name} ${rule.must(meant)}, got '${text}'`)
      given[name] = meant
    }
  }
  const defaults = Object.fromEntries(Object.entries(flags).map(([name, flag]) => [name, flag.default]))
  const result = { given, values: { ...defaults, ...given }, positionals, help }
  return result as unknown as Parsed<F>
}

function nameOf(flags: Flags, arg: string, word: string): string {
  if (arg.startsWith('--')) {
    const found = Object.keys(flags).find((name) => name === word || flags[name].alias === word)
    if (found !== undefined) return found
  } else {
    const found = Object.keys(flags).find((name) => flags[name].letter === word)
    if (found !== undefined) return found
  }
  throw unknownWord(
    'flag',
    arg.replace(/=.*/s, ''),
    [...Object.keys(flags), 'help'].map((name) => `--${name}`),
  )
}

/** One line per flag. */
export function describeFlags(flags: Flags): string {
  const rows = Object.entries({ ...flags, help: toggle('print this help') }).map(
    ([name, { value, help, shown, letter }]) => [
      `${letter ? `-${letter}, ` : ''}--${name}${value === undefined ? '' : ` ${value}`}`,
      `${help}${shown === '' ? '' : ` (${shown})`}`,
    ],
  )
  const width = Math.max(...rows.map(([flag]) => flag.length)) + 2
  return rows.map(([flag, help]) => `  ${flag.padEnd(width)}${help}`).join('\n')
}
