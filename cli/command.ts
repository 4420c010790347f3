import { MoeError } from '../lib/index.js'
import { Failure, UsageError } from './errors.js'
import { describeFlags, type Flags, type Parsed, parseFlags } from './flags.js'
import { line, note, watchOutput } from './output.js'
import { visibleName } from './visible.js'

/** A subcommand: its flags, help and action. */
export interface CommandOptions<F extends Flags> {
  /** Its name on the command line, such as `st-moe train`. */
  program: string
  summary: string
  /** A positional argument, such as `[FILE]`; at most one, unless it ends in `…`. */
  positional?: string
  /** The first positional argument is a program, and all that follows are its arguments. */
  isProgram?: true
  flags: F
  /** Commands and what they do. */
  examples: readonly (readonly [command: string, what: string])[]
  notes?: string
  /** Returns the exit code. */
  run(parsed: Parsed<F>): number | Promise<number>
}

export interface Command {
  summary: string
  /** Runs with the arguments after its name and returns the exit code; never throws an error that a user can cause. */
  run(args: readonly string[]): Promise<number>
}

export function command<F extends Flags>(options: CommandOptions<F>): Command {
  const { program, summary, positional, isProgram, flags } = options
  return {
    summary,
    run: (args) =>
      reportingErrors(program, async () => {
        const parsed = parseFlags(flags, args, isProgram)
        if (parsed.help) {
          line(helpOf(options))
          return 0
        }
        const most = isProgram || positional?.endsWith('…') ? Number.POSITIVE_INFINITY : positional ? 1 : 0
        const tooMany = parsed.positionals[most]
        if (tooMany !== undefined) throw new UsageError(`unexpected argument '${tooMany}'`)
        return options.run(parsed)
      }),
  }
}

function helpOf({ program, summary, positional, isProgram, flags, examples, notes }: CommandOptions<Flags>): string {
  const shown = examples.map(([command, what]) => `  # ${what}\n  ${command}`).join('\n')
  const words = [...(positional ? [positional] : []), '[flags]']
  const usage = [program, ...(isProgram ? words.reverse() : words)].join(' ')
  return [summary, `  ${usage}`, describeFlags(flags), ...(notes ? [notes] : []), `Examples:\n${shown}`].join('\n\n')
}

/**
 * Runs a command and returns its exit code: 2 for an invalid command line, 1 for any other expected failure. Only a bug
 * of the program itself prints a stack trace.
 */
export async function reportingErrors(program: string, run: () => number | Promise<number>): Promise<number> {
  watchOutput(program)
  try {
    return await run()
  } catch (error) {
    const { stack, message } = error as Error
    const usage = error instanceof UsageError
    // One line, whatever names it quotes; only MoeErrors about the addon have more.
    const text = error instanceof MoeError ? message : usage || isExpected(error) ? visibleName(message) : stack
    note(`${program}: ${text}${usage ? `\nrun ${program} --help for usage` : ''}`)
    return usage ? 2 : 1
  }
}

/** Errors described by a command, and the system's errors about files. */
const isExpected = (error: unknown): boolean =>
  error instanceof Failure || typeof (error as { syscall?: unknown }).syscall === 'string'
