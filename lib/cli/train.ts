import { basename, extname, join, resolve } from 'node:path'
import { type Command, command } from './command.js'
import { UsageError } from './errors.js'
import { text, toggle } from './flags.js'
import { readRun } from './language-model/folder.js'
import { checkRunOptions, mayChange, type RunOptions, runFlags } from './language-model/options.js'
import { jsonProgress, textProgress } from './language-model/progress.js'
import { Stop } from './stop.js'

const flags = {
  text: text({ help: 'another way to name FILE', value: 'FILE', default: null }),
  out: text({ help: 'where report and checkpoint go (runs/<name of FILE>)', value: 'FOLDER', default: null }),
  resume: toggle('go on with the run in that folder, bit for bit'),
  overwrite: toggle('start anew where the folder holds a run'),
  json: toggle('a line of JSON for each event instead of text'),
  ...runFlags,
}

interface Usual {
  program: string
  /** What is learned where no text is named, and where it goes. */
  text: string
  name: string
  out: string
}

/** `st-moe train`; with `usual` a program that has a text of its own and starts anew without asking. */
export const trainCommand = (usual?: Usual): Command =>
  command({
    program: usual?.program ?? 'st-moe train',
    summary: 'Trains a small language model with mixture-of-experts layers on a text, character by character.',
    positional: '[FILE]',
    flags,
    notes: `The folder gets checkpoint.safetensors, report.html and its charts as SVG, and run.json.
Ctrl-C finishes the step, saves and ends with code 130; a second one ends at once.`,
    examples: [
      ['st-moe train book.txt', 'learn a book; everything goes to runs/book'],
      ['st-moe train book.txt --out runs/small --steps 500 --dim 64 --experts 4', 'smaller and faster'],
      ['st-moe train --resume --out runs/small --steps 1000', 'go on, to more steps'],
      ['st-moe train book.txt --json | tee run.jsonl', 'for programs'],
    ],
    async run({ values, given, positionals }) {
      const named = positionals[0] ?? values.text
      if (positionals.length > 0 && given.text !== undefined) throw new UsageError('FILE and --text name two texts')
      const out = values.out ?? (named ? join('runs', basename(named, extname(named))) : usual?.out)
      if (out === undefined) throw new UsageError(values.resume ? 'which run? --out names its folder' : 'which FILE?')
      const report = values.json ? jsonProgress() : textProgress()
      const stop = new Stop()
      const { Run } = await import('./language-model/run.js')
      if (values.resume) {
        const saved = readRun(out)
        checkUnchanged(given, saved.options)
        const options = { ...saved.options, minutes: 0, ...pick(given) }
        const text = { name: saved.text.name, path: resolve(named ?? saved.text.path) }
        using run = new Run({ options, text, out, report })
        await run.resume(saved.text.digest)
        await run.train(stop.wanted)
      } else {
        const text = named ? { path: resolve(named), name: basename(named) } : { path: usual!.text, name: usual!.name }
        using run = new Run({ options: checkRunOptions(pick(values)), text, out, report })
        run.start(values.overwrite || usual !== undefined)
        await run.train(stop.wanted)
      }
      return stop.exitCode
    },
  })

/** The entries that belong to a run. */
const pick = <T extends object>(from: T): Pick<T, keyof T & keyof RunOptions> =>
  Object.fromEntries(Object.entries(from).filter(([name]) => Object.hasOwn(runFlags, name))) as Pick<
    T,
    keyof T & keyof RunOptions
  >

function checkUnchanged(given: Partial<RunOptions>, saved: RunOptions): void {
  for (const [name, value] of Object.entries(pick(given))) {
    const before = saved[name as keyof RunOptions]
    if (!mayChange.has(name) && value !== before)
      throw new UsageError(`--${name} cannot change in a resumed run: it is ${before}, got ${value}`)
  }
}
