import { basename, extname, join, resolve } from 'node:path'
import { type Command, command } from './command.js'
import { UsageError } from './errors.js'
import { text, toggle } from './flags.js'
import { conflictOf, mayChange, type RunOptions, runFlags } from './language-model/options.js'
import { jsonProgress, type Report, textProgress } from './language-model/progress.js'
import type { Run } from './language-model/run.js'
import { readRun } from './language-model/saved-run.js'
import { Stop } from './stop.js'

const flags = {
  text: text({ help: 'same as FILE', value: 'FILE', default: null }),
  out: text({ help: 'run folder for report and checkpoint (runs/<name of FILE>)', value: 'FOLDER', default: null }),
  resume: toggle('continue the run in that folder, bit for bit'),
  overwrite: toggle('replace a run in that folder'),
  json: toggle('print a line of JSON per event instead of text'),
  ...runFlags,
}

interface Usual {
  program: string
  /** The default text, its name and its run folder. */
  text: string
  name: string
  out: string
}

/** `st-moe train`; with `usual`, a program with a default text that overwrites its last run. */
export const trainCommand = (usual?: Usual): Command =>
  command({
    program: usual?.program ?? 'st-moe train',
    summary: 'Trains a small character-level language model with mixture-of-experts layers on a text.',
    positional: '[FILE]',
    flags,
    notes: `Writes checkpoint.safetensors, report.html, its charts as SVG, and run.json to the folder.
Ctrl-C, SIGTERM and SIGHUP finish the step, save and exit with code 130, 143 or 129; a second signal stops at once.`,
    examples: [
      ['st-moe train book.txt', 'train on a book; the run folder is runs/book'],
      ['st-moe train book.txt --out runs/small --steps 500 --dim 64 --experts 4', 'a smaller, faster model'],
      ['st-moe train --resume --out runs/small --steps 1000', 'continue, for more steps'],
      ['st-moe train book.txt --json | tee run.jsonl', 'for programs'],
    ],
    async run({ values, given, positionals }) {
      if (positionals.length > 0 && given.text !== undefined) throw new UsageError('give FILE or --text, not both')
      const named = positionals[0] ?? values.text
      const out = values.out ?? (named ? join('runs', basename(named, extname(named))) : usual?.out)
      if (out === undefined) throw new UsageError(values.resume ? '--resume needs --out FOLDER' : 'missing FILE')
      const report = values.json ? jsonProgress() : textProgress()
      if (values.resume) return resumeRun({ out, named, given: runOptionsOf(given), report })
      const text = named
        ? { path: resolve(named), name: basename(named) }
        : usual && { path: usual.text, name: usual.name }
      if (!text) throw new UsageError('missing FILE')
      const options = runOptionsOf(values)
      const conflict = conflictOf(options)
      if (conflict) throw new UsageError(conflict)
      const { Run } = await import('./language-model/run.js')
      using run = new Run({ options, text, out, report })
      run.start(values.overwrite || usual !== undefined)
      return await untilStopped(run)
    },
  })

interface Resumed {
  out: string
  named: string | null
  given: Partial<RunOptions>
  report: Report
}

async function resumeRun({ out, named, given, report }: Resumed): Promise<number> {
  const saved = readRun(out)
  for (const [name, value] of Object.entries(given)) {
    const before = saved.options[name as keyof RunOptions]
    if (!mayChange.has(name) && value !== before)
      throw new UsageError(`--${name} cannot change in a resumed run: it is ${before}, got ${value}`)
  }
  const text = { name: saved.text.name, path: resolve(named ?? saved.text.path) }
  const { Run } = await import('./language-model/run.js')
  using run = new Run({ options: { ...saved.options, minutes: 0, ...given }, text, out, report, resumed: saved })
  await run.resume()
  return await untilStopped(run)
}

/** Until then a signal ends the process as usual: there is nothing to save. */
async function untilStopped(run: Run): Promise<number> {
  const stop = new Stop('finishing this step and saving')
  await run.train(stop.wanted)
  return stop.exitCode
}

/** The flags that belong to a run. */
const runOptionsOf = <T extends Partial<RunOptions>>(flags: T): Pick<T, keyof T & keyof RunOptions> =>
  Object.fromEntries(Object.entries(flags).filter(([name]) => Object.hasOwn(runFlags, name))) as typeof flags
