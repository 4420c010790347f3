import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import {
  type AdamW,
  type Device,
  devices,
  type Generator,
  getDefaultDevice,
  loadCheckpoint,
  MoeError,
  manualSeed,
  saveCheckpoint,
  setDefaultDevice,
  setNumThreads,
} from 'st-moe'
import { Batches, type Corpus, loadCorpus, promptOf } from './data.js'
import { evaluating, heldOutLoss, writeOn } from './evaluate.js'
import { emptyHistory, type History, mean } from './history.js'
import { LanguageModel } from './model.js'
import { ngramLosses, ngramNames } from './ngram.js'
import { type Options, UsageError } from './options.js'
import { preferredCharacters } from './preferences.js'
import { Progress } from './progress.js'
import { makeReport } from './report.js'
import { learningRate, makeOptimizer, recordStep, trainStep } from './train.js'

const checkpointName = 'checkpoint.safetensors'
const optionsName = 'options.json'

/** The options that a run in `folder` was started with. */
export function savedOptions(folder: string): Options {
  if (!existsSync(join(folder, checkpointName))) throw new UsageError(`there is nothing to resume in ${folder}`)
  return JSON.parse(readFileSync(join(folder, optionsName), 'utf8'))
}

function useDevice(device: string): void {
  try {
    setDefaultDevice(device as Device)
  } catch (error) {
    if (error instanceof MoeError) throw new UsageError(`--device: ${error.message}`)
    throw error
  }
}

/** A run and its folder: the model and all that changes with it. */
export class Run {
  readonly options: Options
  readonly #corpus: Corpus
  readonly #model: LanguageModel
  readonly #optimizer: AdamW
  readonly #generator: Generator
  readonly #batches: Batches
  readonly #ngrams: number[]
  readonly #prompt: Int32Array
  readonly #progress = new Progress()
  #history: History = emptyHistory()
  #step = 0

  constructor(options: Options) {
    this.options = options
    useDevice(options.device)
    setNumThreads(options.threads)
    this.#generator = manualSeed(options.seed)
    this.#corpus = loadCorpus(options.text, options.context)
    const { training, heldOut, vocabulary } = this.#corpus
    this.#model = new LanguageModel({ ...options, vocabulary: vocabulary.length })
    this.#optimizer = makeOptimizer(this.#model)
    this.#batches = new Batches(training, options)
    this.#ngrams = ngramLosses(training, heldOut, vocabulary.length)
    this.#prompt = promptOf(this.#corpus, Math.min(40, options.context))
  }

  /** Makes the folder. A checkpoint that an earlier run left there goes. */
  start(): void {
    const { out } = this.options
    try {
      mkdirSync(out, { recursive: true })
    } catch (error) {
      throw new UsageError(`--out cannot be made: ${(error as Error).message}`)
    }
    rmSync(join(out, checkpointName), { force: true })
    writeFileSync(join(out, optionsName), `${JSON.stringify(this.options, null, 2)}\n`)
  }

  async resume(): Promise<void> {
    const { out } = this.options
    const targets = { model: this.#model, optimizer: this.#optimizer, generator: this.#generator }
    const { step, extra } = await loadCheckpoint(join(out, checkpointName), targets)
    this.#step = step
    this.#history = (extra as { history: History }).history
    writeFileSync(join(out, optionsName), `${JSON.stringify(this.options, null, 2)}\n`)
    this.#progress.say(`resumed at step ${step}`)
  }

  /** Trains until the last step, the time limit, or until `stopped` says so; leaves checkpoint and report. */
  async train(stopped: () => boolean): Promise<void> {
    this.#introduce()
    const { steps, minutes } = this.options
    const every = this.options['evaluate-every']
    const deadline = minutes > 0 ? performance.now() + minutes * 60_000 : Number.POSITIVE_INFINITY
    if (this.#history.evaluations.length === 0) this.#look()
    while (this.#step < steps && !stopped() && performance.now() < deadline) {
      this.#advance()
      if (this.#step % every === 0 && this.#step < steps) {
        this.#look()
        await this.#save()
      }
      await setImmediate() // lets signals in
    }
    if (this.#step >= steps && this.#history.evaluations.at(-1)?.step !== steps) this.#look()
    await this.#save()
    this.#conclude()
  }

  #advance(): void {
    const { batch, context, steps, lr } = this.options
    const before = performance.now()
    const result = trainStep(
      this.#model,
      this.#optimizer,
      this.#batches.at(this.#step),
      learningRate(this.#step, steps, lr),
    )
    this.#step++
    recordStep(this.#history, result)
    this.#history.seconds += (performance.now() - before) / 1000
    this.#progress.update({
      step: this.#step,
      steps,
      loss: mean(this.#history.loss.slice(-20)),
      dropped: mean(this.#history.dropped.slice(-20)),
      charactersPerStep: batch * context,
    })
  }

  /** Measures the loss on held-out text (on all of it at the end) and lets the model write. */
  #look(): void {
    const last = this.#step >= this.options.steps
    const { heldOut, vocabulary } = this.#corpus
    const evaluation = evaluating(this.#model, this.#generator, () => {
      const written = writeOn(this.#model, [...this.#prompt], last ? 600 : 240, { seed: this.options.seed })
      return {
        step: this.#step,
        loss: heldOutLoss(this.#model, heldOut, last ? 1 : 0.25),
        sample: written.map((character) => vocabulary[character]).join(''),
      }
    })
    this.#history.evaluations.push(evaluation)
    this.#progress.say(`step ${this.#step}  held-out loss ${evaluation.loss.toFixed(3)}`)
  }

  async #save(): Promise<void> {
    const { out } = this.options
    await saveCheckpoint(join(out, checkpointName), {
      model: this.#model,
      optimizer: this.#optimizer,
      generator: this.#generator,
      step: this.#step,
      extra: { history: this.#history },
    })
    const { html, charts } = makeReport(this.#summary())
    writeFileSync(join(out, 'report.html'), html)
    for (const [name, chart] of Object.entries(charts)) writeFileSync(join(out, name), chart)
  }

  #summary() {
    const { options } = this
    const { vocabulary, heldOut, training, name } = this.#corpus
    const characters = (length: number): string => `${length.toLocaleString('en')} characters`
    return {
      textName: name,
      steps: options.steps,
      charactersPerStep: options.batch * options.context,
      parameters: this.#parameterCount(),
      history: this.#history,
      ngrams: this.#ngrams,
      prompt: this.#promptText(),
      preferred: evaluating(this.#model, this.#generator, () => preferredCharacters(this.#model, heldOut, vocabulary)),
      configuration: [
        ['training text', characters(training.length)],
        ['held-out text', characters(heldOut.length)],
        ['vocabulary', characters(vocabulary.length)],
        ...['steps', 'batch', 'context', 'layers', 'width', 'heads', 'experts', 'lr', 'seed', 'threads'].map(
          (key) => [key === 'lr' ? 'highest learning rate' : key, String(options[key as keyof Options])] as const,
        ),
        ['kernels', devices().find(({ device }) => device === getDefaultDevice())?.variant ?? ''],
        ['Node.js', process.versions.node],
      ] as [string, string][],
    }
  }

  #promptText(): string {
    return [...this.#prompt].map((character) => this.#corpus.vocabulary[character]).join('')
  }

  #parameterCount(): number {
    return [...this.#model.parameters()].reduce((sum, { size }) => sum + size, 0)
  }

  #introduce(): void {
    const { name, training, heldOut, vocabulary } = this.#corpus
    const counts = this.#ngrams.map((loss, i) => `${ngramNames[i]} ${loss.toFixed(3)}`).join(', ')
    const number = (value: number): string => value.toLocaleString('en')
    this.#progress.say(
      `${name}: ${number(training.length)} characters to learn, ${number(heldOut.length)} held out, ` +
        `${vocabulary.length} different; ${number(this.#parameterCount())} parameters\n` +
        `held-out loss of counts, in nats per character: ${counts}`,
    )
  }

  #conclude(): void {
    const { out, steps } = this.options
    const last = this.#history.evaluations.at(-1)
    if (this.#step >= steps && last) this.#progress.say(`\n${this.#promptText()}${last.sample}\n`)
    const goOn = this.#step < steps ? `; go on with --resume --out ${out}` : ''
    this.#progress.say(`step ${this.#step} of ${steps}, report and checkpoint in ${out}${goOn}`)
  }
}
