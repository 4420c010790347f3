import { bench } from './bench.js'
import { build } from './build.js'
import { type Command, reportingErrors } from './command.js'
import { doctor } from './doctor.js'
import { unknownWord } from './flags.js'
import { generate } from './generate.js'
import { launchCommand } from './launch.js'
import { line, table } from './output.js'
import { show } from './show.js'
import { trainCommand } from './train.js'
import { packageVersion } from './version.js'

// No command loads the addon before it runs, so that help and doctor work without it.
const commands: Record<string, Command> = {
  doctor,
  train: trainCommand(),
  show,
  generate,
  bench,
  launch: launchCommand,
  build,
}

function helpText(): string {
  const rows = Object.entries(commands).map(([name, { summary }]) => [`  st-moe ${name}`, summary])
  return `Sparse mixture-of-experts layers for Node.js, from the command line.

${table(rows)}

  st-moe <command> --help   show flags and examples of a command
  st-moe --version

Exit codes: 0 success, 1 failure, 2 invalid command line, 130 stopped by Ctrl-C,
143 by SIGTERM, 129 by a closed terminal.`
}

/** Runs the program with its arguments and returns the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  const [name = '--help', ...rest] = args
  if (Object.hasOwn(commands, name)) return commands[name].run(rest)
  if (name === 'help' && Object.hasOwn(commands, rest[0] ?? '')) return commands[rest[0]].run(['--help'])
  return reportingErrors('st-moe', () => {
    if (['--help', '-h', 'help'].includes(name)) line(helpText())
    else if (name === '--version') line(packageVersion())
    else
      throw unknownWord(name.startsWith('-') ? 'flag' : 'command', name, [
        ...Object.keys(commands),
        'help',
        '--version',
      ])
    return 0
  })
}
