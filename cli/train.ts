import { basename, extname, join, resolve } from 'node:path'
import { maxTextBytes } from '../language-model/index.js'
import type { ProcessGroup } from '../lib/index.js'
import { type Command, command } from './command.js'
import { UsageError } from './errors.js'
import { readInput } from './files.js'
import { number, portFlag, text, toggle } from './flags.js'
import { Stop } from './stop.js'
import { mayChange, type RunOptions, runFlags } from './trainer/options.js'
import { jsonProgress, type Report, textProgress } from './trainer/progress.js'
import type { Run } from './trainer/run.js'
import type { LivePage } from './ui/live.js'

const flags = {
  text: text({ help: 'same as FILE', value: 'FILE', default: null }),
  out: text({ help: 'run folder for report and checkpoint (runs/<name of FILE>)', value: 'FOLDER', default: null }),
  resume: toggle('continue the run in that folder, bit for bit'),
  overwrite: toggle('replace a run in that folder'),
  json: toggle('print a line of JSON per event instead of text'),
  ui: toggle('show the run in a browser while it trains: prints the URL'),
  'ui-port': portFlag('the same, at this port of the machine'),
  processes: number({ help: 'train in so many processes of this machine, over MPI', default: 1, min: 1, max: 1024 }),
  'expert-parallel': number({
    help: 'so many of the processes share out the experts',
    default: 1,
    min: 1,
    max: 1024,
  }),
  tensorboard: text({ help: 'write files for TensorBoard to that folder', value: 'FOLDER', default: null }),
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
    summary: 'Trains a small language model with mixture-of-experts layers on a text.',
    positional: '[FILE | FOLDER | -]',
    flags,
    notes: `With a folder for FILE, the text is all files in it, in the order of their paths, each with its last tenth
held out; with -, it is standard input, also of a resumed run.
Writes checkpoint.safetensors, report.html, its charts as SVG, and run.json to the folder.
With --processes, each process trains on its part of every batch, which --batch must divide into equal ones; the
losses are those of one process up to rounding. It needs an MPI library, such as @st-moe/mpich-linux-x64.
With --expert-parallel too, which must divide --processes, each of so many processes has a part of the experts, and
the checkpoint is a file of each process with an index.
Ctrl-C, SIGTERM and SIGHUP finish the step, save and exit with code 130, 143 or 129; a second one, half
a second later or more, stops at once.`,
    examples: [
      ['st-moe train book.txt', 'train on a book; the run folder is runs/book'],
      ['st-moe train books', 'train on all texts of a folder'],
      ['st-moe train book.txt --ui', 'and show it in a browser'],
      ['st-moe train book.txt --out runs/small --steps 500 --dim 64 --experts 4', 'a smaller, faster model'],
      ['st-moe train --resume --out runs/small --steps 1000', 'continue, for more steps'],
      ['st-moe train book.txt --vocab-size 1024 --context 64', 'byte pairs for tokens instead of characters'],
      ['st-moe train book.txt --processes 4', 'in four processes'],
      ['st-moe train book.txt --processes 4 --expert-parallel 4', 'each with a quarter of the experts'],
      ['cat *.txt | st-moe train - --out runs/all', 'a text from standard input'],
      ['st-moe train book.txt --json | tee run.jsonl', 'for programs'],
    ],
    async run({ values, given, positionals }) {
      if (values.resume && values.overwrite)
        throw new UsageError('--resume continues a run, --overwrite replaces it: give one of them')
      if (positionals.length > 0 && given.text !== undefined) throw new UsageError('give FILE or --text, not both')
      const named = positionals[0] ?? values.text
      const out =
        values.out ?? (named ? join('runs', named === '-' ? 'input' : basename(named, extname(named))) : usual?.out)
      if (out === undefined) throw new UsageError(values.resume ? '--resume needs --out FOLDER' : 'missing FILE')
      const { processes, 'expert-parallel': expertParallel } = values
      if (processes > 1 && named === '-') throw new UsageError('a text from standard input is for one process')
      const { isInJob, joinJob, trainInJob } = await import('./trainer/job.js')
      if (processes > 1 && !isInJob()) return trainInJob(processes)
      const group = processes > 1 ? joinJob(processes) : null
      const ranks = { group, expertParallel }
      const isFirst = group === null || group.rank === 0
      const print = values.json ? jsonProgress() : textProgress()
      const page = isFirst ? await pageOf(values) : null
      const sinks = isFirst ? [print, ...(await tensorBoardOf(values)), ...(page ? [page.report] : [])] : []
      const report = together(sinks)
      const train = async (): Promise<number> => {
        if (values.resume) return resumeRun({ out, named, given: runOptionsOf(given), report, page, ranks })
        const text = named ? await textAt(named) : usual && { path: usual.text, name: usual.name }
        if (!text) throw new UsageError('missing FILE')
        const options = runOptionsOf(values)
        const { Run } = await import('./trainer/run.js')
        using run = await Run.open({ options, text, out, report, ...ranks })
        run.start(values.overwrite || usual !== undefined)
        return await untilStopped(run, { report, page })
      }
      const exitCode = await (page ? page.during(train) : train())
      group?.destroy() // not after an error: the others wait for this process elsewhere, and are told that it has ended
      return exitCode
    },
  })

const together =
  (sinks: readonly Report[]): Report =>
  (event) => {
    for (const sink of sinks) sink(event)
  }

async function tensorBoardOf({ tensorboard }: { tensorboard: string | null }): Promise<Report[]> {
  if (tensorboard === null) return []
  const { tensorBoard } = await import('./trainer/tensorboard.js')
  return [tensorBoard(tensorboard)]
}

async function pageOf({ ui, 'ui-port': port }: { ui: boolean; 'ui-port': number | null }): Promise<LivePage | null> {
  if (!ui && port === null) return null
  const { LivePage } = await import('./ui/live.js')
  return LivePage.open(port ?? 0)
}

/** What a run tells, and its page. */
interface Sinks {
  report: Report
  page: LivePage | null
}

interface Resumed extends Sinks {
  ranks: { group: ProcessGroup | null; expertParallel: number }
  out: string
  named: string | null
  given: Partial<RunOptions>
}

async function resumeRun({ out, named, given, report, page, ranks }: Resumed): Promise<number> {
  const { readRun } = await import('./trainer/saved-run.js')
  const saved = readRun(out)
  for (const [name, value] of Object.entries(given)) {
    const before = saved.options[name as keyof RunOptions]
    if (!mayChange.has(name) && value !== before)
      throw new UsageError(
        `--${name} cannot change in a resumed run: it is ${before ?? runFlags[name as keyof RunOptions].shown}, got ${value}`,
      )
  }
  const text = { ...(await textAt(named ?? saved.text.path)), name: saved.text.name }
  const { Run } = await import('./trainer/run.js')
  using run = await Run.open({
    options: { ...saved.options, minutes: 0, ...given },
    text,
    out,
    report,
    ...ranks,
    resumed: saved,
  })
  await run.resume()
  return await untilStopped(run, { report, page })
}

/** A file, or - for standard input. */
async function textAt(path: string): Promise<{ path: string; name: string; bytes?: readonly Uint8Array[] }> {
  if (path !== '-') return { path: resolve(path), name: basename(path) }
  return { path, name: 'standard input', bytes: await readInput(maxTextBytes) }
}

/** Until then a signal ends the process as usual: there is nothing to save. */
async function untilStopped(run: Run, { report, page }: Sinks): Promise<number> {
  if (page) {
    page.show(run.shown)
    report({ event: 'ui', url: page.url })
  }
  const stop = new Stop(run.isFirst ? 'finishing this step and saving' : undefined)
  await run.train(stop.wanted)
  return stop.exitCode
}

/** The flags that belong to a run. */
const runOptionsOf = <T extends Partial<RunOptions>>(flags: T): Pick<T, keyof T & keyof RunOptions> =>
  Object.fromEntries(Object.entries(flags).filter(([name]) => Object.hasOwn(runFlags, name))) as typeof flags
