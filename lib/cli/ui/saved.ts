import { progressIn } from '../../language-model/folder.js'
import { asFailure } from '../errors.js'
import { historyIn, readRun } from '../language-model/saved-run.js'
import { aboutRun } from './feed.js'
import type { PageRun } from './server.js'

/** A run from its folder, which may be untrusted; reads no weights. */
export async function savedRun(folder: string): Promise<PageRun> {
  const { id, options, text } = readRun(folder)
  const progress = await progressIn('st-moe show', folder, id).catch((error) => {
    throw asFailure(error)
  })
  const history = historyIn(folder, options, progress)
  const state = history.steps < options.steps ? 'stopped' : 'finished'
  return { about: aboutRun(folder, options, text.name, history), history, status: { state } }
}
