import { command } from './command.js'
import { UsageError } from './errors.js'
import { portFlag, toggle } from './flags.js'
import { jsonLine, line } from './output.js'
import { Stop } from './stop.js'

const maxRuns = 16

/** `st-moe show` */
export const show = command({
  program: 'st-moe show',
  summary: 'Shows runs of st-moe train in a browser, and compares them.',
  positional: 'FOLDER…',
  flags: {
    port: portFlag('of the page'),
    json: toggle('print the URL as one line of JSON'),
  },
  examples: [
    ['st-moe show runs/book', 'losses, speed, expert load and samples of a run'],
    ['st-moe show runs/a runs/b', 'two runs: their losses in one plot, and the flags that differ'],
    ['st-moe show runs/* --port 8080 --json', 'for programs'],
  ],
  notes: `Prints a URL of this machine and serves it until Ctrl-C. At most ${maxRuns} runs, as their last checkpoints are.`,
  async run({ values: { port, json }, positionals: folders }) {
    if (folders.length === 0) throw new UsageError('missing FOLDER; st-moe train prints it at the end')
    if (folders.length > maxRuns) throw new UsageError(`at most ${maxRuns} runs fit on a page, got ${folders.length}`)
    const [{ savedRun }, { PageServer }] = await Promise.all([import('./ui/saved.js'), import('./ui/server.js')])
    const runs = []
    for (const folder of folders) runs.push(await savedRun(folder))
    const page = await PageServer.open(port ?? 0, '--port')
    const stop = new Stop()
    page.show(runs)
    if (json) jsonLine({ url: page.url })
    else line(`${page.url}\nCtrl-C ends it.`)
    await stop.requested()
    await page.close()
    return stop.exitCode
  },
})
