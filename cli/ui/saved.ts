import { RunFolder } from '../../language-model/index.js'
import { asFailure } from '../errors.js'
import { historyIn, readRun } from '../trainer/saved-run.js'
import { aboutRun } from './feed.js'
import type { PageRun } from './server.js'

/** A run from its folder, which may be untrusted; reads no weights. */
export async function savedRun(folder: string): Promise<PageRun> {
  const { id, options, text } = readRun(folder)
  const progress = await new RunFolder(folder, 'st-moe show').progress(id).catch((error) => {
    throw asFailure(error)
  })
  const history = historyIn(folder, options, progress)
  const state = history.steps < options.steps ? 'stopped' : 'finished'
  return { about: aboutRun(folder, options, text.name, history), history, status: { state } }
}
