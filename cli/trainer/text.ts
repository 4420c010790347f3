import { type BigIntStats, statSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { type Corpus, type CorpusProgress, loadCorpus, textOf } from '../../language-model/index.js'
import { MoeError } from '../../lib/index.js'
import { asFailure, Failure } from '../errors.js'
import { ngramLosses } from './ngram.js'
import type { RunOptions } from './options.js'
import type { Report } from './progress.js'
import { promptOf } from './prompt.js'
import { type SavedRun, tokenizerIn } from './saved-run.js'

/** Where the text of a run is. */
export interface TextPlace {
  /** A file or a folder; `-` for standard input. */
  path: string
  name: string
  /** The text itself, if it is not at the path. */
  bytes?: readonly Uint8Array[]
}

/** The text of a run, and what is counted in it before the run begins. */
export interface RunText {
  corpus: Corpus
  /** Held-out loss of the n-gram baselines, nats per character. */
  ngrams: number[]
  /** What samples continue. */
  prompt: string
}

interface TextSettings {
  options: Pick<RunOptions, 'context' | 'vocab-size'>
  text: TextPlace
  report: Report
  /** A resumed run keeps its byte pairs. */
  resumed?: SavedRun
}

/** Reads the text of a run. */
export async function readText({ options, text, report, resumed }: TextSettings): Promise<RunText> {
  const { context, 'vocab-size': size } = options
  const progress = everySecond(report)
  const tokens = size === null ? {} : resumed ? { tokenizer: tokenizerIn(resumed) } : { vocabSize: size }
  const corpus = await loadCorpus(text.path, { ...text, ...tokens, context, progress }).catch((error) => {
    const isLarge = error instanceof MoeError && error.code === 'OUT_OF_MEMORY'
    throw isLarge ? new Failure(`${text.path}: ${error.message.slice(`[${error.op}] `.length)}`) : asFailure(error)
  })
  if (resumed && corpus.digest !== resumed.text.digest)
    throw new Failure(`${text.path} is not the text that this run was trained on`)
  const { characters } = corpus
  const { training, heldOut, tokenizer } = characters
  const ngrams = await ngramLosses(training, heldOut, tokenizer.size, (done, total) =>
    progress({ stage: 'counting n-grams', done, total }),
  )
  return { corpus, ngrams, prompt: textOf(tokenizer, promptOf(characters, Math.min(40, context))) }
}

/** Reports at most once a second, and nothing of what takes less. */
function everySecond(report: Report) {
  let last = performance.now()
  return (progress: Omit<CorpusProgress, 'stage'> & { stage: string }): void => {
    const now = performance.now()
    if (now - last < 1000) return
    last = now
    report({ event: 'prepare', ...progress })
  }
}

/** Whether two paths lead to one file. */
export function isSame(a: string, b: string): boolean {
  const [one, other] = [a, b].map(statOf)
  return one !== null && one.ino === other?.ino && one.dev === other.dev
}

/** null for a path that cannot be: whoever writes there says why. */
function statOf(path: string): BigIntStats | null {
  try {
    return statSync(path, { bigint: true })
  } catch {
    return null
  }
}

/** Whether a path, of a folder that need not exist, is a folder or in it. */
export function isIn(path: string, folder: string): boolean {
  const full = resolve(path)
  if (isSame(full, folder)) return statSync(folder).isDirectory()
  return dirname(full) !== full && isIn(dirname(full), folder)
}
