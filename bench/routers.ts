import { readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import {
  batchesOptions,
  conflictOf,
  layerFlags,
  mean,
  modelSizes,
  number,
  parseFlags,
  type RunOptions,
} from '../cli/index.js'
import {
  Batches,
  type Corpus,
  evaluating,
  heldOutLoss,
  LanguageModel,
  loadCorpus,
  makeOptimizer,
  makeSchedule,
  type TokenArray,
  TrainStep,
} from '../language-model/index.js'
import {
  type AdamW,
  type CosineSchedule,
  devices,
  type Generator,
  getNumThreads,
  isGatedActivation,
  type LayerStats,
  MoEMonitor,
  manualSeed,
  moeOptions,
} from '../lib/index.js'
import { mobyDick, usual } from './demo.js'
import { main } from './main.js'
import { clock, inTurns, type Participant } from './measured.js'
import { fill } from './page.js'
import { markdownTable } from './table.js'

/**
 * The table of docs/routing.md: the demo's model with each router and each kind of experts, of as many parameters and
 * trained for as long.
 */

const flags = {
  steps: number({ help: 'training steps of the first model; the others have its time', default: 400, min: 1 }),
}
const page = new URL('../docs/routing.md', import.meta.url)

type Other = Partial<RunOptions>
const others = <T>(words: readonly T[], flag: { default: T }, make: (word: T) => Other): Other[] =>
  words.filter((word) => word !== flag.default).map(make)

/** Hidden sizes of experts that make as many parameters as the defaults: of plain experts, and with a shared one. */
const hidden = { plain: 533, shared: 303 }

/** What differs from the defaults. */
const all: readonly Other[] = [
  {},
  { seed: 2 },
  { seed: 3 },
  { 'top-n': 1 },
  ...others(moeOptions.router.allowed, layerFlags.router, (router) => ({ router })),
  { dropless: true },
  { router: 'switch', dropless: true },
  { 'shared-experts': 1, 'expert-hidden-dim': hidden.shared },
  ...others(moeOptions.secondPolicyTrain.allowed, layerFlags['second-policy'], (policy) => ({
    'second-policy': policy,
  })),
  ...others(moeOptions.scoreFunction.allowed, layerFlags['score-function'], (scores) => ({ 'score-function': scores })),
  ...others(moeOptions.activation.allowed, layerFlags.activation, (activation) => ({
    activation,
    ...(!isGatedActivation(activation) && { 'expert-hidden-dim': hidden.plain }),
  })),
]
const models = all.filter((other) => conflictOf(modelSizes({ ...usual, ...other })) === null)

/** As on the command line. */
const shown = (other: Other): string =>
  Object.entries(other)
    .map(([name, value]) => (value === true ? `\`--${name}\`` : `\`--${name} ${value}\``))
    .join(' ') || 'the defaults'

/** A model with its optimizer and batches. */
class Trainee {
  readonly other: Other
  readonly model: LanguageModel
  readonly #options: RunOptions
  readonly #generator: Generator
  readonly #optimizer: AdamW
  readonly #schedule: CosineSchedule
  readonly #trainStep: TrainStep
  readonly #batches: Batches

  constructor(other: Other, corpus: Corpus, steps: number) {
    this.other = other
    this.#options = { ...usual, ...other, steps }
    this.#generator = manualSeed(this.#options.seed)
    this.model = new LanguageModel({ ...modelSizes(this.#options), tokenizer: corpus.tokenizer })
    this.#optimizer = makeOptimizer(this.model, this.#options.lr)
    this.#schedule = makeSchedule(this.#optimizer, steps)
    this.#trainStep = new TrainStep(this.model, this.#optimizer)
    this.#batches = new Batches(corpus.training, batchesOptions(this.#options))
  }

  get parameters(): number {
    return this.model.parameters().reduce((sum, { size }) => sum + size, 0)
  }

  step(step: number): void {
    this.#schedule.moveTo(step)
    this.#trainStep.run(this.#batches.at(step))
  }

  heldOutLoss(text: TokenArray): Promise<number | null> {
    return evaluating(this.model, this.#generator, () =>
      heldOutLoss(this.model, text, { part: 1, stopped: () => false }),
    )
  }

  [Symbol.dispose](): void {
    this.#trainStep[Symbol.dispose]()
    this.#optimizer.dispose()
    this.model.dispose()
  }
}

/** Steps before a step is timed: routers drop more at the start. */
const settling = 25

/** How many times as long as that of the first a step of each takes. */
async function timesOf(corpus: Corpus): Promise<number[]> {
  const all = models.map((other) => new Trainee(other, corpus, settling + 16))
  const [first, ...rest] = all.map((trainee): Participant => {
    for (let step = 0; step < settling; step++) trainee.step(step)
    let next = settling
    return { name: shown(trainee.other), params: {}, time: () => clock(() => trainee.step(next++)) }
  })
  const others = rest.map((one) => ({ ...one, against: [{ other: first, measure: 'time' as const }] }))
  const results = await inTurns([first, ...others], 15)
  for (const trainee of all) {
    if (Math.abs(trainee.parameters / all[0].parameters - 1) > 0.01)
      throw new Error(`${shown(trainee.other)}: ${trainee.parameters} parameters, the defaults ${all[0].parameters}`)
    trainee[Symbol.dispose]()
  }
  return results.map(({ ratios: [ratio] }) => ratio?.wall.median ?? 1)
}

async function row(other: Other, corpus: Corpus, steps: number): Promise<string[]> {
  using trainee = new Trainee(other, corpus, steps)
  using monitor = new MoEMonitor(trainee.model)
  const ms = clock(() => {
    for (let step = 0; step < steps; step++) {
      if (step === steps - Math.ceil(steps / 4)) monitor.reset() // the shares are of the last quarter
      trainee.step(step)
    }
  })
  const layers = monitor.report()
  const loss = await trainee.heldOutLoss(corpus.heldOut)
  const percent = (share: (layer: LayerStats) => number): string => `${(mean(layers.map(share)) * 100).toFixed(1)} %`
  return [
    shown(other),
    String(steps),
    (ms / 1000).toFixed(0),
    loss!.toFixed(3),
    layers[0].droppedPerChoice.map((_, k) => percent(({ droppedPerChoice }) => droppedPerChoice[k])).join(', '),
    percent(({ slotOccupancy }) => slotOccupancy),
    mean(layers.map(({ routerEntropy }) => routerEntropy)).toFixed(2),
  ]
}

await main(import.meta.url, 'bench:routers', async (args) => {
  const { steps } = parseFlags(flags, args).values
  const corpus = await loadCorpus(mobyDick, { name: 'Moby-Dick', context: usual.context })
  const times = await timesOf(corpus)
  const rows: string[][] = []
  for (const [i, other] of models.entries()) {
    rows.push(await row(other, corpus, Math.max(1, Math.round(steps / times[i]))))
    console.log(rows[i].join('  '))
  }
  const table = markdownTable(
    ['flags', 'steps', 'seconds', 'held-out loss', 'dropped per choice', 'slots used', 'entropy'],
    rows,
  )
  const machine =
    `${new Date().toISOString().slice(0, 10)}, \`npm run bench:routers\` on ${getNumThreads()} cores of ` +
    `${cpus()[0].model.trim()}, variant ${devices()[0].variant}.`
  writeFileSync(page, fill(readFileSync(page, 'utf8'), { routers: `${table}\n\n${machine}` }))
})
