import { setImmediate } from 'node:timers/promises'
import {
  type AdamW,
  type Device,
  devices,
  type Generator,
  getDefaultDevice,
  getNumThreads,
  MoEMonitor,
  MoeError,
  manualSeed,
  setDefaultDevice,
  setNumThreads,
} from '../../index.js'
import { Failure, UsageError } from '../errors.js'
import { checkMemory } from '../memory.js'
import { explain, record } from '../rules.js'
import { Batches } from './batches.js'
import { checkHolds, restore } from './checkpoint.js'
import { type Corpus, loadCorpus, promptOf } from './data.js'
import { evaluating, heldOutLoss } from './evaluate.js'
import { RunFolder } from './folder.js'
import { emptyHistory, type History, historySchema, longestSample, recordEvaluation, recordStep } from './history.js'
import { layerConflict } from './layer-options.js'
import { LanguageModel, sizesOf, trainingBytes } from './model.js'
import { ngramLosses, ngramNames } from './ngram.js'
import { modelOptions, type RunOptions, usedOptions } from './options.js'
import { preferredCharacters } from './preferences.js'
import type { Report } from './progress.js'
import { makeReport, type RunSummary } from './report.js'
import { checkpointIn, notThisVersion, type SavedRun } from './saved-run.js'
import { entryOf, learningRate, makeOptimizer, TrainStep } from './train.js'
import { writeOn } from './write.js'

interface RunSettings {
  options: RunOptions
  text: { path: string; name: string }
  /** Folder of checkpoint and report. */
  out: string
  report: Report
  /** The description of a resumed run, from its folder. */
  resumed?: SavedRun
}

/** A training run: its folder, model, optimizer and history. */
export class Run {
  readonly #options: RunOptions
  readonly #textPath: string
  readonly #report: Report
  readonly #corpus: Corpus
  readonly #model: LanguageModel
  readonly #monitor: MoEMonitor
  readonly #optimizer: AdamW
  readonly #trainStep: TrainStep
  readonly #generator: Generator
  readonly #batches: Batches
  readonly #ngrams: number[]
  readonly #prompt: number[]
  readonly #folder: RunFolder
  #history: History = emptyHistory()
  #step = 0

  constructor({ options, text, out, report, resumed }: RunSettings) {
    const conflict = layerConflict(modelOptions(options, 0))
    if (conflict) throw resumed ? notThisVersion(out, conflict) : new UsageError(conflict)
    this.#options = options
    this.#textPath = text.path
    this.#report = report
    this.#corpus = loadCorpus(text.path, options.context, text.name)
    const { training, heldOut, vocabulary, digest } = this.#corpus
    if (resumed && digest !== resumed.text.digest)
      throw new Failure(`${text.path} is not the text that this run was trained on`)
    const model = modelOptions(options, vocabulary.length)
    if (resumed) checkHolds(out, model)
    setDefaultDevice(options.device as Device)
    const { batch } = options
    if (getDefaultDevice() === 'cpu') checkMemory('training', trainingBytes(model, batch), { ...sizesOf(model), batch })
    if (options.threads !== null) setNumThreads(options.threads)
    this.#folder = new RunFolder(out)
    this.#generator = manualSeed(options.seed)
    this.#model = new LanguageModel(model)
    this.#monitor = new MoEMonitor(this.#model)
    this.#optimizer = makeOptimizer(this.#model)
    this.#trainStep = new TrainStep(this.#model, this.#optimizer)
    this.#batches = new Batches(training, options)
    this.#ngrams = ngramLosses(training, heldOut, vocabulary.length)
    this.#prompt = [...promptOf(this.#corpus, Math.min(40, options.context))]
  }

  [Symbol.dispose](): void {
    this.#monitor.dispose()
    this.#trainStep[Symbol.dispose]()
    this.#optimizer.dispose()
    this.#model.dispose()
    this.#folder[Symbol.dispose]()
  }

  /** Starts a new run. Replaces an earlier run in the folder only with `overwrite`. */
  start(overwrite: boolean): void {
    const { path, hasCheckpoint } = this.#folder
    if (hasCheckpoint && !overwrite)
      throw new Failure(
        `${path} contains a run: --resume continues it, --overwrite replaces it, --out selects another folder`,
      )
    this.#folder.clear()
    this.#describe()
  }

  /** Continues from the checkpoint. */
  async resume(): Promise<void> {
    const { path } = this.#folder
    const { steps, layers, experts } = this.#options
    const targets = { model: this.#model, optimizer: this.#optimizer, generator: this.#generator }
    const { step, extra } = await restore(path, targets)
    const found = record({ history: historySchema({ steps: step, layers, experts }) })(extra)
    if (found) throw new Failure(`${checkpointIn(path)} does not contain the history of its run: ${explain(found)}`)
    if (step > steps)
      throw new UsageError(`this run has completed ${step} steps: --steps must be at least ${step}, got ${steps}`)
    this.#step = step
    this.#history = (extra as { history: History }).history
    this.#describe()
    this.#report({ event: 'resume', step })
  }

  /** Trains until the last step, the time limit or `stopped()`; saves checkpoint and report. */
  async train(stopped: () => boolean): Promise<void> {
    this.#introduce()
    const { steps, minutes, 'evaluate-every': every } = this.#options
    const deadline = minutes > 0 ? performance.now() + minutes * 60_000 : Number.POSITIVE_INFINITY
    for (;;) {
      const done = this.#step >= steps
      const due = (done || this.#step % every === 0) && this.#history.evaluations.at(-1)?.step !== this.#step
      if (due) await this.#evaluate(stopped)
      if (done || stopped() || performance.now() > deadline) break
      if (due) await this.#save()
      this.#advance()
      await setImmediate() // lets signals in
    }
    await this.#save()
    this.#conclude()
  }

  #describe(): void {
    const { name, digest, vocabulary } = this.#corpus
    this.#folder.describe({
      options: this.#options,
      text: { path: this.#textPath, name, digest, vocabulary: vocabulary.join('') },
    })
  }

  #advance(): void {
    const { steps, lr } = this.#options
    const before = performance.now()
    const rate = learningRate(this.#step, steps, lr)
    const loss = this.#finite(() => this.#trainStep.run(this.#batches.at(this.#step), rate))
    const entry = entryOf(loss, this.#monitor.report())
    this.#monitor.reset()
    this.#step++
    recordStep(this.#history, entry)
    this.#history.seconds += (performance.now() - before) / 1000
    this.#report({ event: 'step', step: this.#step, steps, loss: entry.loss, dropped: entry.dropped })
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

  /** Measures the loss on held-out text (on all of it at the end) and generates a sample. */
  async #evaluate(stopped: () => boolean): Promise<void> {
    const last = this.#step >= this.#options.steps
    const { heldOut } = this.#corpus
    const { seed } = this.#options
    const evaluation = await evaluating(this.#model, this.#generator, async () => {
      const sampled: number[] = []
      const length = last ? longestSample : 240
      for await (const character of writeOn(this.#model, this.#prompt, length, { seed, temperature: 0.7, topK: 0 })) {
        sampled.push(character)
        if (stopped()) return null
      }
      const loss = await heldOutLoss(this.#model, heldOut, { part: last ? 1 : 0.25, stopped })
      return loss === null ? null : { step: this.#step, loss, sample: this.#textOf(sampled) }
    })
    if (evaluation === null) return
    if (!Number.isFinite(evaluation.loss)) throw this.#diverged(`the loss on held-out text is ${evaluation.loss}`)
    recordEvaluation(this.#history, evaluation)
    this.#report({ event: 'evaluation', ...evaluation })
  }

  async #save(): Promise<void> {
    await this.#folder.save({
      model: this.#model,
      optimizer: this.#optimizer,
      generator: this.#generator,
      step: this.#step,
      extra: { history: this.#history },
    })
    const { html, charts } = makeReport(await this.#summary())
    this.#folder.write({ 'report.html': html, ...charts })
  }

  async #summary(): Promise<RunSummary> {
    const options = { ...this.#options, threads: this.#options.threads ?? getNumThreads() }
    const { vocabulary, heldOut, training, name } = this.#corpus
    const characters = (length: number): string => `${length.toLocaleString('en')} characters`
    const shown = usedOptions(options).filter((key) => !['minutes', 'evaluate-every'].includes(key))
    return {
      textName: name,
      steps: options.steps,
      charactersPerStep: options.batch * options.context,
      parameters: this.#parameterCount(),
      history: this.#history,
      ngrams: this.#ngrams,
      prompt: this.#textOf(this.#prompt),
      preferred: await evaluating(this.#model, this.#generator, () =>
        preferredCharacters(this.#model, heldOut, vocabulary),
      ),
      configuration: [
        ['training text', characters(training.length)],
        ['held-out text', characters(heldOut.length)],
        ['vocabulary', characters(vocabulary.length)],
        ...shown.map((key) => [key, String(options[key as keyof RunOptions])] as const),
        ['kernels', devices().find(({ device }) => device === getDefaultDevice())?.variant ?? ''],
        ['Node.js', process.versions.node],
      ],
    }
  }

  #textOf(characters: readonly number[]): string {
    return characters.map((character) => this.#corpus.vocabulary[character]).join('')
  }

  #parameterCount(): number {
    return [...this.#model.parameters()].reduce((sum, { size }) => sum + size, 0)
  }

  #introduce(): void {
    const { name, training, heldOut, vocabulary } = this.#corpus
    this.#report({
      event: 'start',
      text: name,
      training: training.length,
      heldOut: heldOut.length,
      vocabulary: vocabulary.length,
      parameters: this.#parameterCount(),
      charactersPerStep: this.#options.batch * this.#options.context,
      counts: Object.fromEntries(this.#ngrams.map((loss, i) => [ngramNames[i], loss])),
    })
  }

  #conclude(): void {
    const { steps } = this.#options
    const last = this.#history.evaluations.at(-1)
    const text = this.#step >= steps && last ? this.#textOf(this.#prompt) + last.sample : ''
    this.#report({ event: 'end', step: this.#step, steps, out: this.#folder.path, text })
  }
}
