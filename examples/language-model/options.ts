import { resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { getNumThreads } from 'st-moe'

/** A wrong argument: its message goes to the user, without a stack trace. */
export class UsageError extends Error {}

interface NumberOption {
  help: string
  default: number
  min: number
  max?: number
  real?: true
}

const numbers = {
  steps: { help: 'training steps', default: 2000, min: 1 },
  minutes: { help: 'stop after this time, to be resumed later; 0 for no limit', default: 0, min: 0, real: true },
  seed: { help: 'of the first weights, the order of the text and the routing', default: 1, min: 0 },
  threads: { help: 'CPU threads; results do not depend on it', default: getNumThreads(), min: 1, max: 256 },
  layers: { help: 'transformer layers', default: 3, min: 1 },
  width: { help: 'model width, a multiple of --heads', default: 128, min: 1 },
  heads: { help: 'attention heads', default: 4, min: 1 },
  experts: { help: 'experts in a layer, of which a character visits up to two', default: 8, min: 2 },
  context: { help: 'characters in a sequence', default: 128, min: 2 },
  batch: { help: 'sequences in a step', default: 16, min: 1 },
  lr: { help: 'highest learning rate', default: 4e-3, min: 0, real: true },
  'evaluate-every': { help: 'steps between looks at the held-out text', default: 200, min: 1 },
} satisfies Record<string, NumberOption>

export type NumberName = keyof typeof numbers
export type Options = Record<NumberName, number> & {
  text: string | null
  out: string
  device: string
}

export interface CommandLine {
  /** What was given. */
  given: Partial<Options>
  resume: boolean
  help: boolean
}

/** What a resumed run may change. More steps stretch the schedule of the learning rate from here on. */
export const mayChange: ReadonlySet<string> = new Set([
  'steps',
  'minutes',
  'threads',
  'evaluate-every',
  'out',
  'device',
])

export const defaults: Options = {
  ...(Object.fromEntries(Object.entries(numbers).map(([name, { default: value }]) => [name, value])) as Record<
    NumberName,
    number
  >),
  text: null,
  out: 'runs/moby-dick',
  device: 'cpu',
}

export const helpText = `Trains a small language model with mixture-of-experts layers on a text, character by character.

  npm run demo -- [options]

  --text FILE           text to learn; without it Moby-Dick
  --out FOLDER          where report and checkpoint go (runs/<name of the text>)
  --device NAME         cpu, cuda or cuda:N (cpu)
  --resume              continue the run in that folder, bit for bit
${Object.entries(numbers)
  .map(([name, option]) => `  --${`${name} N`.padEnd(20)}${option.help} (${option.default})`)
  .join('\n')}
  --help

Ctrl-C saves a checkpoint and ends with code 130; a second one ends at once.
`

/** Reads the command line; throws a UsageError that says what is wrong. */
export function parseCommandLine(args: string[]): CommandLine {
  const { values } = parse(args)
  const { text, out, device, resume, help, ...rest } = values as Record<string, string | boolean | undefined>
  const given: Partial<Options> = {}
  for (const [name, value] of Object.entries(rest)) {
    if (value !== undefined) given[name as NumberName] = readNumber(name as NumberName, String(value))
  }
  if (text !== undefined) given.text = resolve(String(text))
  if (out !== undefined) given.out = String(out)
  if (device !== undefined) given.device = String(device)
  return { given, resume: resume === true, help: help === true }
}

/** Rules between options. */
export function checkOptions(options: Options): Options {
  const { width, heads } = options
  if (width % heads !== 0) throw new UsageError(`--width must be a multiple of --heads, got ${width} and ${heads}`)
  return options
}

function parse(args: string[]) {
  const text = { type: 'string' } as const
  const flag = { type: 'boolean' } as const
  const options = Object.fromEntries(Object.keys(numbers).map((name) => [name, text]))
  try {
    return parseArgs({ args, options: { ...options, text, out: text, device: text, resume: flag, help: flag } })
  } catch (error) {
    throw new UsageError((error as Error).message)
  }
}

function readNumber(name: NumberName, text: string): number {
  const { min, max = Number.MAX_SAFE_INTEGER, real }: NumberOption = numbers[name]
  const value = text.trim() === '' ? Number.NaN : Number(text)
  if (!(value >= min && value <= max) || !(real || Number.isInteger(value))) {
    const range = max < Number.MAX_SAFE_INTEGER ? `from ${min} to ${max}` : `of at least ${min}`
    throw new UsageError(`--${name} must be ${real ? 'a number' : 'a whole number'} ${range}, got '${text}'`)
  }
  return value
}
