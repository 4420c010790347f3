import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import {
  Batches,
  type Corpus,
  describeTokenizer,
  evaluating,
  heldOutLoss,
  kebabCase,
  LanguageModel,
  type LanguageModelShape,
  makeOptimizer,
  makeSchedule,
  memoryOptions,
  RunFolder,
  TrainStep,
  trainingBytes,
} from '../../language-model/index.js'
import { hasHostMemory } from '../../lib/doctor/index.js'
import {
  type AdamW,
  type CosineSchedule,
  type DataParallel,
  dataParallel,
  devices,
  type Generator,
  getDefaultDevice,
  getNumThreads,
  MoEMonitor,
  MoeError,
  manualSeed,
  ops,
  type ProcessGroup,
  setNumThreads,
  tensor,
} from '../../lib/index.js'
import { asFailure, Failure, UsageError, useDevice } from '../errors.js'
import { checkMemory } from '../memory.js'
import { aboutRun, type ShownRun } from '../ui/feed.js'
import { conflictOf } from './conflict.js'
import { entryOf } from './entry.js'
import { TrainingFolder } from './folder.js'
import { emptyHistory, type History, longestSample, recordEvaluation, recordStep } from './history.js'
import { ngramNames } from './ngram.js'
import { batchesOptions, modelSizes, type RunOptions, runFlags, usedOptions } from './options.js'
import { preferredTokens } from './preferences.js'
import type { Report } from './progress.js'
import { makeReport, type RunSummary } from './report.js'
import { historyIn, notThisVersion, type SavedRun } from './saved-run.js'
import { isIn, isSame, type RunText, readText, type TextPlace } from './text.js'

interface RunSettings {
  options: RunOptions
  text: TextPlace
  /** Folder of checkpoint and report. */
  out: string
  report: Report
  /** The processes that train together, each on its part of a batch; the first has the folder and decides. By default one. */
  group?: ProcessGroup | null
  /** So many of them share out the experts. Default 1: each has all. */
  expertParallel?: number
  /** The description of a resumed run, from its folder. */
  resumed?: SavedRun
}

/** Rejects a checkpoint that is not of this run, or too small for its model. */
function checkResumed(out: string, sizes: LanguageModelShape, V: number, id: string | undefined): void {
  try {
    new RunFolder(out, 'st-moe train').checkHolds(sizes, V, id)
  } catch (error) {
    throw asFailure(error)
  }
}

/** The flags that the memory depends on. */
const flagsOf = (sizes: LanguageModelShape): Record<string, number> =>
  Object.fromEntries(Object.entries(memoryOptions(sizes)).map(([name, value]) => [kebabCase(name), value]))

/** A training run: its folder, model, optimizer and history. */
export class Run {
  readonly #options: RunOptions
  readonly #textPath: string
  readonly #report: Report
  readonly #corpus: Corpus
  readonly #id: string | undefined
  readonly #model: LanguageModel
  readonly #monitor: MoEMonitor
  readonly #optimizer: AdamW
  readonly #schedule: CosineSchedule
  readonly #trainStep: TrainStep
  readonly #generator: Generator
  readonly #batches: Batches
  readonly #ngrams: number[]
  readonly #prompt: string
  readonly #out: string
  /** Null on all ranks but the first. */
  readonly #folder: TrainingFolder | null
  readonly #group: ProcessGroup | null
  /** That of all processes if they have to save together, because none has the whole model. */
  readonly #saving: ProcessGroup | undefined
  readonly #parallel: DataParallel | null
  #history: History = emptyHistory()
  #step = 0

  /** Reads the text, and makes the model. */
  static async open(settings: RunSettings): Promise<Run> {
    const { options, text, out, resumed } = settings
    const conflict = conflictOf(modelSizes(options))
    if (conflict) throw resumed ? notThisVersion(out, conflict) : new UsageError(conflict)
    if (isIn(out, text.path))
      throw new UsageError(`the run folder ${out} is in the folder of the text: --out selects another`)
    const { group, expertParallel = 1 } = settings
    const { size = 1 } = group ?? {}
    if (options.batch % size !== 0)
      throw new UsageError(`--batch must be a multiple of --processes ${size}, got ${options.batch}`)
    if (size % expertParallel !== 0)
      throw new UsageError(`--expert-parallel must divide --processes ${size}, got ${expertParallel}`)
    return new Run(settings, await readText(settings))
  }

  private constructor(
    { options, text, out, report, group = null, expertParallel = 1, resumed }: RunSettings,
    { corpus, ngrams, prompt }: RunText,
  ) {
    this.#options = options
    this.#textPath = text.path
    this.#report = report
    this.#corpus = corpus
    this.#ngrams = ngrams
    this.#prompt = prompt
    const { training, tokenizer } = corpus
    this.#id = resumed ? resumed.id : RunFolder.idOf(this.#description)
    const sizes = LanguageModel.checkOptions(modelSizes(options))
    if (resumed) checkResumed(out, sizes, tokenizer.size, resumed.id)
    useDevice(options.device)
    const { batch } = options
    if (hasHostMemory(getDefaultDevice())) {
      const { size, localSize } = group ?? { size: 1, localSize: 1 }
      const own = { ...sizes, experts: Math.ceil(sizes.experts / expertParallel) }
      const bytes = localSize * trainingBytes(own, tokenizer.size, batch / size)
      checkMemory('training', bytes, { ...flagsOf(sizes), batch, ...(group && { processes: size }) })
    }
    if (options.threads !== null) setNumThreads(options.threads)
    this.#out = out
    this.#group = group
    this.#folder = this.isFirst ? new TrainingFolder(out) : null
    this.#generator = manualSeed(options.seed)
    this.#saving = group && expertParallel > 1 ? group : undefined
    const processGroup = this.#saving?.split({ expertParallel }).expertParallel
    this.#model = new LanguageModel({ ...sizes, tokenizer, processGroup })
    this.#monitor = new MoEMonitor(this.#model)
    this.#optimizer = makeOptimizer(this.#model, options.lr)
    this.#schedule = makeSchedule(this.#optimizer, options.steps)
    this.#parallel = group && dataParallel(this.#model, group)
    this.#trainStep = new TrainStep(this.#model, this.#optimizer, this.#parallel)
    this.#batches = new Batches(training, batchesOptions(options))
  }

  [Symbol.dispose](): void {
    this.#monitor.dispose()
    this.#trainStep[Symbol.dispose]()
    this.#parallel?.dispose()
    this.#optimizer.dispose()
    this.#model.dispose()
    this.#folder?.[Symbol.dispose]()
  }

  /** Whether this process has the folder, and decides when to stop. */
  get isFirst(): boolean {
    return !this.#group || this.#group.rank === 0
  }

  /** What a page shows of it; changes as it trains. */
  get shown(): ShownRun {
    return { about: aboutRun(this.#out, this.#options, this.#corpus.name, this.#history), history: this.#history }
  }

  /** Starts a new run. Only with `overwrite`, its first save replaces files of the folder, such as an earlier run. */
  start(overwrite: boolean): void {
    if (this.#folder) this.#checkFolder(this.#folder, overwrite)
    this.#recordConstants()
  }

  #checkFolder(folder: TrainingFolder, overwrite: boolean): void {
    const { path, holdsRun, holdsSave, files } = folder
    if (files.length > 0 && !overwrite) {
      const found = holdsRun ? 'a run' : files[0]
      throw new Failure(
        `${path} contains ${found}: ${holdsSave ? '--resume continues it, ' : ''}--overwrite replaces it, --out selects another folder`,
      )
    }
    this.#checkText(folder)
  }

  /** A run never replaces its text. */
  #checkText({ path, files }: TrainingFolder): void {
    if (files.some((name) => isSame(join(path, name), this.#textPath)))
      throw new UsageError(`${this.#textPath} is the text, and the run would replace it: move it to another folder`)
  }

  /** Continues from the checkpoint. */
  async resume(): Promise<void> {
    if (this.#folder) this.#checkText(this.#folder)
    const { steps } = this.#options
    const targets = { model: this.#model, optimizer: this.#optimizer, generator: this.#generator }
    const progress = await new RunFolder(this.#out, 'st-moe train').restore(targets, this.#id).catch((error) => {
      throw asFailure(error)
    })
    const history = historyIn(this.#out, this.#options, progress)
    const { step } = progress
    if (step > steps)
      throw new UsageError(`this run has completed ${step} steps: --steps must be at least ${step}, got ${steps}`)
    this.#step = step
    this.#history = history
    this.#recordConstants()
    this.#report({ event: 'resume', step })
  }

  /** Trains until the last step, the time limit, which leaves time for a step, or `stopped()`; saves checkpoint and report. */
  async train(stopped: () => boolean): Promise<void> {
    this.#introduce()
    const { steps, minutes, 'evaluate-every': every } = this.#options
    const deadline = minutes > 0 ? performance.now() + minutes * 60_000 : Number.POSITIVE_INFINITY
    const first = this.#step
    for (;;) {
      const done = this.#step >= steps
      const due = (done || this.#step % every === 0) && this.#history.evaluations.at(-1)?.step !== this.#step
      if (due) await this.#evaluate(stopped)
      const late = performance.now() > deadline && this.#step > first
      if (this.#firstSays(done || stopped() || late)) break
      if (due) await this.#save()
      this.#advance()
      await setImmediate() // lets signals in
    }
    await this.#save()
    this.#conclude()
  }

  /** What the first process says, on all of them. */
  #firstSays(value: boolean): boolean {
    if (!this.#group) return value
    using own = tensor(Int32Array.of(Number(value)), [1], { device: 'cpu' })
    using said = ops.broadcast(own, this.#group)
    return said.item() === 1
  }

  /** What a page needs besides the history of the steps, and cannot know without the text and the model. */
  #recordConstants(): void {
    Object.assign(this.#history, {
      ngrams: this.#ngrams,
      prompt: this.#prompt,
      parameters: this.#model.parameterCount,
      charactersPerStep: this.#charactersPerStep,
    } satisfies Partial<History>)
  }

  get #description(): SavedRun {
    const { name, digest, tokenizer } = this.#corpus
    const text = { path: this.#textPath, name, digest, ...describeTokenizer(tokenizer)! }
    return { id: this.#id, options: this.#options, text }
  }

  #advance(): void {
    const { steps } = this.#options
    const before = performance.now()
    this.#schedule.moveTo(this.#step)
    const loss =
      this.#finite(() => this.#trainStep.run(this.#batches.at(this.#step))) / this.#charactersPerToken.training
    const entry = entryOf(loss, this.#monitor.report(this.#group ?? undefined))
    this.#monitor.reset()
    this.#step++
    const learningRate = this.#optimizer.lr
    const stepSeconds = (performance.now() - before) / 1000
    recordStep(this.#history, { ...entry, learningRate, stepSeconds })
    this.#history.seconds += stepSeconds
    this.#report({ event: 'step', step: this.#step, steps, learningRate, ...entry })
  }

  #finite<T>(step: () => T): T {
    try {
      return step()
    } catch (error) {
      throw error instanceof MoeError && error.code === 'NON_FINITE' ? this.#diverged(error.message) : error
    }
  }

  #diverged(what: string): Failure {
    return new Failure(`step ${this.#step + 1}: ${what}; a lower --lr may help. The last checkpoint is intact.`)
  }

  /** Measures the loss on held-out text (on all of it at the end) and generates a sample. All processes take part. */
  async #evaluate(stopped: () => boolean): Promise<void> {
    const last = this.#step >= this.#options.steps
    const { heldOut } = this.#corpus
    const { seed } = this.#options
    const evaluation = await evaluating(this.#model, this.#generator, async () => {
      let sample = ''
      const longest = last ? longestSample : 240
      const options = { maxTokens: longest, seed, temperature: 0.7 }
      for await (const piece of this.#model.generate(this.#prompt, options)) {
        sample += piece
        if (this.#firstSays(stopped() || [...sample].length >= longest)) break
      }
      const loss = await heldOutLoss(this.#model, heldOut, {
        part: last ? 1 : 0.25,
        stopped: () => this.#firstSays(stopped()),
        group: this.#group,
      })
      if (loss === null) return null
      return {
        step: this.#step,
        loss: loss / this.#charactersPerToken.heldOut,
        sample: [...sample].slice(0, longest).join(''),
      }
    })
    if (evaluation === null) return
    if (!Number.isFinite(evaluation.loss)) throw this.#diverged(`the loss on held-out text is ${evaluation.loss}`)
    recordEvaluation(this.#history, evaluation)
    this.#report({ event: 'evaluation', ...evaluation })
  }

  async #save(): Promise<void> {
    const folder = this.#folder ?? (this.#saving && new RunFolder(this.#out, 'st-moe train'))
    if (!folder) return
    await folder.save(this.#description, {
      model: this.#model,
      optimizer: this.#optimizer,
      generator: this.#generator,
      step: this.#step,
      extra: { history: this.#history },
      group: this.#saving,
    })
    const summary = await this.#summary()
    this.#folder?.write(makeReport(summary))
  }

  async #summary(): Promise<RunSummary> {
    const options = { ...this.#options, threads: this.#options.threads ?? getNumThreads() }
    const { tokenizer, heldOut, characters, name } = this.#corpus
    const counted = (length: number, of = 'characters'): string => `${length.toLocaleString('en')} ${of}`
    const shown = usedOptions(options).filter((key) => !['minutes', 'evaluate-every'].includes(key))
    return {
      textName: name,
      steps: options.steps,
      charactersPerStep: this.#charactersPerStep,
      parameters: this.#model.parameterCount,
      history: this.#history,
      ngrams: this.#ngrams,
      prompt: this.#prompt,
      preferred: await evaluating(this.#model, this.#generator, () => preferredTokens(this.#model, heldOut)),
      configuration: [
        ['training text', counted(characters.training.length)],
        ['held-out text', counted(characters.heldOut.length)],
        ['vocabulary', counted(tokenizer.size, 'tokens')],
        ...shown.map((key) => {
          const name = key as keyof RunOptions
          return [key, String(options[name] ?? runFlags[name].shown)] as const
        }),
        ['kernels', devices().find(({ device }) => device === getDefaultDevice())?.variant ?? ''],
        ['Node.js', process.versions.node],
      ],
    }
  }

  /** Losses are per character, so that those of different tokenizers, and n-grams, compare. */
  get #charactersPerToken(): { training: number; heldOut: number } {
    const { training, heldOut, characters } = this.#corpus
    return {
      training: characters.training.length / training.length,
      heldOut: characters.heldOut.length / heldOut.length,
    }
  }

  get #charactersPerStep(): number {
    const { batch, context } = this.#options
    return Math.round(batch * context * this.#charactersPerToken.training)
  }

  #introduce(): void {
    const { name, characters, tokenizer } = this.#corpus
    this.#report({
      event: 'start',
      text: name,
      training: characters.training.length,
      heldOut: characters.heldOut.length,
      vocabulary: tokenizer.size,
      parameters: this.#model.parameterCount,
      charactersPerStep: this.#charactersPerStep,
      counts: Object.fromEntries(this.#ngrams.map((loss, i) => [ngramNames[i], loss])),
    })
  }

  #conclude(): void {
    const { steps } = this.#options
    const last = this.#history.evaluations.at(-1)
    const text = this.#step >= steps && last ? this.#prompt + last.sample : ''
    this.#report({ event: 'end', step: this.#step, steps, out: this.#out, text })
  }
}
