import { basename, extname, join } from 'node:path'
import {
  checkOptions,
  defaults,
  helpText,
  mayChange,
  type Options,
  parseCommandLine,
  UsageError,
} from './language-model/options.js'
import { Run, savedOptions } from './language-model/run.js'

/** The run that the command line asks for; null after --help. */
async function prepare(args: string[]): Promise<Run | null> {
  const { given, resume, help } = parseCommandLine(args)
  if (help) {
    process.stdout.write(helpText)
    return null
  }
  const named = given.text ? join('runs', basename(given.text, extname(given.text))) : defaults.out
  const out = given.out ?? named
  if (!resume) {
    const run = new Run(checkOptions({ ...defaults, ...given, out }))
    run.start()
    return run
  }
  const saved = savedOptions(out)
  for (const [name, value] of Object.entries(given)) {
    if (!mayChange.has(name) && value !== saved[name as keyof Options]) {
      throw new UsageError(`--${name} cannot change in a resumed run: it is ${saved[name as keyof Options]}`)
    }
  }
  const run = new Run({ ...saved, minutes: 0, ...given, out })
  await run.resume()
  return run
}

let interrupted = false
process.on('SIGINT', () => {
  if (interrupted) process.exit(130)
  interrupted = true
})

try {
  const run = await prepare(process.argv.slice(2))
  await run?.train(() => interrupted)
  if (interrupted) process.exitCode = 130
} catch (error) {
  if (!(error instanceof UsageError)) throw error
  process.stderr.write(`${error.message}\nnpm run demo -- --help shows the options\n`)
  process.exitCode = 2
}
