import { readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
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
import { clock, inTurns, type Participant } from './measured.js'
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

interface Trained {
  cells: string[]
  parameters: string
  step: () => void
  dispose: () => void
}

async function trained(other: Other, corpus: Corpus, steps: number): Promise<Trained> {
  const options = { ...usual, ...other, steps }
  const generator = manualSeed(options.seed)
  const model = new LanguageModel(modelOptions(options, corpus.vocabulary.length))
  const optimizer = makeOptimizer(model)
  using monitor = new MoEMonitor(model)
  const batches = new Batches(corpus.training, options)
  const take = (step: number): void =>
    void trainStep(model, optimizer, batches.at(step), learningRate(step, steps, options.lr))
  for (let step = 0; step < steps; step++) {
    if (step === steps - Math.ceil(steps / 4)) monitor.reset() // the shares are of the last quarter
    take(step)
  }
  const layers = monitor.report()
  const loss = await evaluating(model, generator, () =>
    heldOutLoss(model, corpus.heldOut, { part: 1, stopped: () => false }),
  )
  const percent = (share: (layer: LayerStats) => number): string => `${(mean(layers.map(share)) * 100).toFixed(1)} %`
  const cells = [
    shown(other),
    loss!.toFixed(3),
    layers[0].droppedPerChoice.map((_, k) => percent(({ droppedPerChoice }) => droppedPerChoice[k])).join(', '),
    percent(({ slotOccupancy }) => slotOccupancy),
    mean(layers.map(({ routerEntropy }) => routerEntropy)).toFixed(2),
  ]
  const parameters = [...model.parameters()].reduce((sum, { size }) => sum + size, 0)
  const dispose = () => {
    optimizer.dispose()
    model.dispose()
  }
  return { cells, parameters: `${(parameters / 1e6).toFixed(2)} M`, step: () => take(steps), dispose }
}

/** How long a step takes, and how many times as long as that of the first. */
async function timesOf(all: readonly Trained[]): Promise<string[]> {
  const [first, ...rest] = all.map(
    ({ cells: [name], step }): Participant => ({ name, params: {}, time: () => clock(step) }),
  )
  const others = rest.map((one) => ({ ...one, against: [{ other: first, measure: 'time' as const }] }))
  const results = await inTurns([first, ...others], 15)
  return results.map(({ wallMs, ratios: [ratio] }) => {
    const times = ratio ? `, ${ratio.wall.median.toFixed(2)}×` : ''
    return `${wallMs.median.toFixed(0)}${times}`
  })
}

await main(import.meta.url, 'bench:routers', async (args) => {
  const { steps } = parseFlags(flags, args).values
  const corpus = loadCorpus(mobyDick, usual.context, 'Moby-Dick')
  const all: Trained[] = []
  for (const other of models) {
    all.push(await trained(other, corpus, steps))
    console.log(all.at(-1)!.cells.join('  '))
  }
  const times = await timesOf(all)
  for (const { dispose } of all) dispose()
  const table = markdownTable(
    ['flags', 'held-out loss', 'dropped per choice', 'slots used', 'entropy', 'ms per step', 'parameters'],
    all.map(({ cells, parameters }, i) => [...cells, times[i], parameters]),
  )
  const machine =
    `${new Date().toISOString().slice(0, 10)}, ${steps} steps each, \`npm run bench:routers\` on ${getNumThreads()} cores of ` +
    `${cpus()[0].model.trim()}, variant ${devices()[0].variant}.`
  writeFileSync(page, fill(readFileSync(page, 'utf8'), { routers: `${table}\n\n${machine}` }))
})
