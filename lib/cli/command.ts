import { MoeError } from '../errors.js'
import { Failure, UsageError } from './errors.js'
import { describeFlags, type Flags, type Parsed, parseFlags } from './flags.js'
import { line, note, watchOutput } from './output.js'
import { visibleName } from './visible.js'

/** A subcommand: what it takes, its help, and what it does. */
export interface CommandOptions<F extends Flags> {
  /** How it is called, such as `st-moe train`. */
  program: string
  summary: string
  /** What stands alone on its command line, such as `[FILE]`; at most one. */
  positional?: string
  flags: F
  /** Commands to copy, and what they do. */
  examples: readonly (readonly [command: string, what: string])[]
  notes?: string
  /** Gives the exit code. */
  run(parsed: Parsed<F>): number | Promise<number>
}

export interface Command {
  summary: string
  /** Runs with the arguments behind its name; gives the exit code and throws nothing that a user can cause. */
  run(args: readonly string[]): Promise<number>
}

export function command<F extends Flags>(options: CommandOptions<F>): Command {
  const { program, summary, positional, flags } = options
  return {
    summary,
    run: (args) =>
      reportingErrors(program, async () => {
        const parsed = parseFlags(flags, args)
        if (parsed.help) {
          line(helpOf(options))
          return 0
        }
        const tooMany = parsed.positionals[positional ? 1 : 0]
        if (tooMany !== undefined) throw new UsageError(`there is an argument too many: '${tooMany}'`)
        return options.run(parsed)
      }),
  }
}

function helpOf({ program, summary, positional, flags, examples, notes }: CommandOptions<Flags>): string {
  const shown = examples.map(([command, what]) => `  # ${what}\n  ${command}`).join('\n')
  const usage = [program, ...(positional ? [positional] : []), '[flags]'].join(' ')
  return [summary, `  ${usage}`, describeFlags(flags), ...(notes ? [notes] : []), `Examples:\n${shown}`].join('\n\n')
}

/**
 * Runs a command and gives its exit code: 2 after a wrong command line, 1 after anything else that can go wrong outside
 * of this program. Only a mistake of the program itself shows a stack trace.
 */
export async function reportingErrors(program: string, run: () => number | Promise<number>): Promise<number> {
  watchOutput(program)
  try {
    return await run()
  } catch (error) {
    const { stack, message } = error as Error
    const usage = error instanceof UsageError
    // One line, whatever names it quotes; only what MoeErrors tell of the addon has more.
    const text = error instanceof MoeError ? message : usage || isExpected(error) ? visibleName(message) : stack
    note(`${program}: ${text}${usage ? `\n${program} --help shows what it takes` : ''}`)
    return usage ? 2 : 1
  }
}

/** Errors that a command describes, and those of the system about files. */
const isExpected = (error: unknown): boolean =>
  error instanceof Failure || typeof (error as { syscall?: unknown }).syscall === 'string'
