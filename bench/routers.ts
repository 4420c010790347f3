import { readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { spreadOf } from '../lib/cli/bench/statistics.js'
import { number, parseFlags } from '../lib/cli/flags.js'
import { Batches } from '../lib/cli/language-model/batches.js'
import { type Corpus, loadCorpus } from '../lib/cli/language-model/data.js'
import { evaluating, heldOutLoss } from '../lib/cli/language-model/evaluate.js'
import { mean } from '../lib/cli/language-model/history.js'
import { LanguageModel } from '../lib/cli/language-model/model.js'
import { conflictOf, layerFlags, modelOptions, type RunOptions } from '../lib/cli/language-model/options.js'
import { learningRate, makeOptimizer, trainStep } from '../lib/cli/language-model/train.js'
import { devices, getNumThreads, type LayerStats, MoEMonitor, manualSeed } from '../lib/index.js'
import { activationOptions } from '../lib/ops/activation.js'
import { routerOptions, scoreFunctions, secondPolicies } from '../lib/ops/route-options.js'
import { mobyDick, usual } from './demo.js'
import { main } from './main.js'
import { fill } from './page.js'
import { markdownTable } from './table.js'

/** The table of docs/routing.md: the demo's model with each router and each kind of experts, trained for as many steps. */

const flags = { steps: number({ help: 'training steps of each model', default: 400, min: 1 }) }
const page = new URL('../docs/routing.md', import.meta.url)

type Other = Partial<RunOptions>
const others = <T>(words: readonly T[], flag: { default: T }, make: (word: T) => Other): Other[] =>
  words.filter((word) => word !== flag.default).map(make)

/** What differs from the defaults. */
const all: readonly Other[] = [
  {},
  { seed: 2 },
  { 'top-n': 1 },
  ...others(routerOptions.router.allowed, layerFlags.router, (router) => ({ router })),
  { dropless: true },
  { router: 'switch', dropless: true },
  { 'shared-experts': 1 },
  ...others(secondPolicies, layerFlags['second-policy'], (policy) => ({ 'second-policy': policy })),
  ...others(scoreFunctions, layerFlags['score-function'], (scores) => ({ 'score-function': scores })),
  ...others(activationOptions.activation.allowed, layerFlags.activation, (activation) => ({ activation })),
]
const models = all.filter((other) => conflictOf({ ...usual, ...other }) === null)

/** As on the command line. */
const shown = (other: Other): string =>
  Object.entries(other)
    .map(([name, value]) => (value === true ? `\`--${name}\`` : `\`--${name} ${value}\``))
    .join(' ') || 'the defaults'

async function row(other: Other, corpus: Corpus, steps: number): Promise<string[]> {
  const options = { ...usual, ...other, steps }
  const generator = manualSeed(options.seed)
  using model = new LanguageModel(modelOptions(options, corpus.vocabulary.length))
  using optimizer = makeOptimizer(model)
  using monitor = new MoEMonitor(model)
  const batches = new Batches(corpus.training, options)
  const times: number[] = []
  for (let step = 0; step < steps; step++) {
    if (step === steps - Math.ceil(steps / 4)) monitor.reset() // the shares are of the last quarter
    const before = performance.now()
    trainStep(model, optimizer, batches.at(step), learningRate(step, steps, options.lr))
    times.push(performance.now() - before)
  }
  const loss = await evaluating(model, generator, () =>
    heldOutLoss(model, corpus.heldOut, { part: 1, stopped: () => false }),
  )
  const layers = monitor.report()
  const percent = (share: (layer: LayerStats) => number): string => `${(mean(layers.map(share)) * 100).toFixed(1)} %`
  const parameters = [...model.parameters()].reduce((sum, { size }) => sum + size, 0)
  return [
    shown(other),
    loss!.toFixed(3),
    layers[0].droppedPerChoice.map((_, k) => percent(({ droppedPerChoice }) => droppedPerChoice[k])).join(', '),
    percent(({ slotOccupancy }) => slotOccupancy),
    mean(layers.map(({ routerEntropy }) => routerEntropy)).toFixed(2),
    spreadOf(times).median.toFixed(0),
    `${(parameters / 1e6).toFixed(2)} M`,
  ]
}

await main(import.meta.url, 'bench:routers', async (args) => {
  const { steps } = parseFlags(flags, args).values
  const corpus = loadCorpus(mobyDick, usual.context, 'Moby-Dick')
  const rows: string[][] = []
  for (const other of models) {
    rows.push(await row(other, corpus, steps))
    console.log(rows.at(-1)!.join('  '))
  }
  const table = markdownTable(
    ['flags', 'held-out loss', 'dropped per choice', 'slots used', 'entropy', 'ms per step', 'parameters'],
    rows,
  )
  const machine =
    `${new Date().toISOString().slice(0, 10)}, ${steps} steps each, \`npm run bench:routers\` on ${getNumThreads()} cores of ` +
    `${cpus()[0].model.trim()}, variant ${devices()[0].variant}.`
  writeFileSync(page, fill(readFileSync(page, 'utf8'), { routers: `${table}\n\n${machine}` }))
})
