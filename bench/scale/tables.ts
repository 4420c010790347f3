import { digits, markdownTable } from '../table.js'
import { type Anchor, anchorsOf, type Gpus } from './anchors.js'
import { type Line, lineChart } from './chart.js'
import { fitMachine } from './fit.js'
import { best, type Choice, layoutsOf, memoryOf, ownNumbers, secondsOf, stepOf, sumOf, tokensOf } from './layout.js'
import { between, fitEfficiency, gpusOf, nodeMemory, sources } from './machines.js'
import type { Measured } from './measure.js'
import { allReduce, allToAll, groupOf, layerSeconds, type Machine } from './model.js'
import { active, demo, type Model, models, total } from './models.js'
import { exchangeBytes, fitted, predicted } from './shapes.js'

/** The tables and pictures of docs/scaling.md, by what was measured. */

export const rankCounts: readonly number[] = Array.from({ length: 11 }, (_, i) => 2 ** i)

export interface World {
  measured: Measured
  here: Machine
  efficiency: number
  gpus: Gpus
}

const secondsBy =
  ({ times }: Measured) =>
  (ranks: number, name: string): number =>
    times[ranks][name].median / 1e3

const fitTo = (measured: Measured): Machine =>
  fitMachine({ name: measured.processor, node: measured.cores, capacity: nodeMemory, between }, secondsBy(measured))

/** The machine that was measured, fitted, and the GPUs. */
export function worldOf(measured: Measured): World {
  const efficiency = fitEfficiency()
  return { measured, here: fitTo(measured), efficiency, gpus: gpusOf(efficiency) }
}

const milliseconds = (seconds: number): string => digits(seconds * 1e3)
const off = (model: number, found: number): string =>
  `${((model / found - 1) * 100 + 0).toFixed(1).replace('-0.0', '0.0')} %`

/** Seconds of a layer by measurement and model. */
export function layerErrors({ measured, here }: World) {
  const seconds = secondsBy(measured)
  return [...fitted, predicted].flatMap((shape) =>
    [1, 2, 4].map((ranks) => ({
      ...{ shape, ranks, found: seconds(ranks, shape.name), model: layerSeconds(here, shape, ranks) },
      isFitted: shape !== predicted && ranks < 4,
    })),
  )
}

const layerTable = (world: World): string =>
  markdownTable(
    ['layer', 'ranks', 'measured, ms', 'model, ms', 'error', 'use'],
    layerErrors(world).map(({ shape, ranks, found, model, isFitted }) => {
      const use = isFitted ? 'fitted' : ranks > 2 ? '4 ranks on 2 cores' : '**predicted**'
      return [shape.name, String(ranks), milliseconds(found), milliseconds(model), off(model, found), use]
    }),
  )

const exchangeTable = ({ measured, here }: World): string => {
  const seconds = secondsBy(measured)
  const pair = groupOf(here, 2)
  return markdownTable(
    ['KiB', 'all-to-all, ms', 'model, ms', 'all-reduce, ms', 'model, ms'],
    exchangeBytes.map((bytes) => [
      String(bytes / 1024),
      ...[milliseconds(seconds(2, `all-to-all ${bytes}`)), milliseconds(allToAll(here, pair, bytes))],
      ...[milliseconds(seconds(2, `all-reduce ${bytes}`)), milliseconds(allReduce(here, pair, bytes))],
    ]),
  )
}

const giga = (value: number): string => digits(value / 1e9)

const machineTable = ({ here, gpus }: World): string =>
  markdownTable(
    ['machine', 'node', 'GB/s inside', 'GB/s between', 'TFLOP/s', 'of peak', 'memory, GB/s', 'GB', 'source'],
    [here, ...Object.values(gpus)].map((machine, i) => {
      const { name, node, inside, between, rate, peak, memory, capacity } = machine
      const source = i === 0 ? 'measured and fitted; the network is assumed' : Object.values(sources)[i - 1]
      return [
        ...[i === 0 ? `${name}, a core a rank` : name, String(node), giga(inside.bandwidth), giga(between.bandwidth)],
        ...[digits(rate / 1e12), i === 0 ? '' : `${((100 * rate) / peak).toFixed(0)} %`, giga(memory)],
        ...[giga(capacity), source],
      ]
    }),
  )

const modelTable = (): string =>
  markdownTable(
    ['model', 'parameters', 'active', 'sequences × tokens a step', 'source'],
    models.map((model) => [
      ...[model.name, `${giga(total(model))} B`, `${giga(active(model))} B`],
      ...[`${model.batch.toLocaleString('en')} × ${model.context.toLocaleString('en')}`, model.source],
    ]),
  )

const layoutText = ({ layout, step }: Choice): string => {
  const { ranks, pipeline, expertParallel, shardOptimizer, recompute } = layout
  return [
    ...(pipeline > 1 ? [`${pipeline} stages`] : []),
    `data ${ranks / pipeline}`,
    `experts ${expertParallel}`,
    ...(shardOptimizer ? ['sharded'] : []),
    ...(recompute ? ['recompute'] : []),
    `${((100 * (step.rows + step.gradients)) / secondsOf(step)).toFixed(0)} % exchange`,
  ].join(', ')
}

const time = (seconds: number): string => (seconds < 1 ? `${digits(seconds * 1e3)} ms` : `${digits(seconds)} s`)

const machineFor = ({ here, gpus }: World, model: Model): Machine => (model === demo ? here : gpus.h100)

const bytes = (value: number): string => (value < 1e9 ? `${digits(value / 1e6)} MB` : `${digits(value / 1e9)} GB`)

/** For each number of ranks the fastest layout that fits. */
export function stepTable(world: World, model: Model, stages: boolean): string {
  return markdownTable(
    ['ranks', 'best layout', 'memory of a rank', 'step', 'tokens/s'],
    rankCounts.map((ranks) => {
      const { choice, least } = best(machineFor(world, model), model, ranks, { stages })
      if (!choice) return [String(ranks), 'none fits', `at least ${bytes(least)}`, '–', '–']
      const { layout, memory, seconds } = choice
      const rate = digits(tokensOf(model, layout) / seconds)
      return [String(ranks), layoutText(choice), bytes(memory), time(seconds), rate]
    }),
  )
}

const anchorTable = (anchors: readonly Anchor[]): string =>
  markdownTable(
    ['published', 'figure', 'model', 'model ÷ figure', 'assumed', 'source'],
    anchors.map(({ what, unit, published, model, isFitted, assumed = '', source }) => [
      ...[what, `${digits(published)} ${unit}`, `${digits(model)} ${unit}`],
      ...[`${(model / published).toFixed(2)}${isFitted ? ', an input' : ''}`, assumed, source],
    ]),
  )

/** Which parameters, gradients and states fill a rank of 1,024, without stages. */
const memoryTable = (): string =>
  markdownTable(
    ['model', 'ranks', 'experts', 'weights', 'gradients', 'state', 'activations', 'sum'],
    models.slice(1).flatMap((model) =>
      [64, 1024].map((ranks) => {
        const layouts = layoutsOf(model, ranks, false).map((layout) => ({ layout, memory: memoryOf(model, layout) }))
        const { layout, memory } = layouts.sort((a, b) => sumOf(a.memory) - sumOf(b.memory))[0]
        const { weights, gradients, state, activations } = memory
        const each = [weights, gradients, state, activations, sumOf(memory)].map(bytes)
        return [model.name, String(ranks), String(layout.expertParallel), ...each]
      }),
    ),
  )

/** The demo's step on one rank, which bench/figures.md has measured on two threads of one process: 101 ms. */
const demoText = ({ here }: World): string => {
  const layout = { ranks: 1, expertParallel: 1, shardOptimizer: false, recompute: false, pipeline: 1 }
  const seconds = secondsOf(stepOf(here, demo, layout, ownNumbers(demo))) / 2
  const figure = 0.101
  return `Half of the demo's step on one rank is ${time(seconds)} in the model; two threads of one process took ${time(figure)} (bench/figures.md): ${(seconds / figure).toFixed(2)} times as long.`
}

const measuredText = ({ measured, here }: World): string => {
  const { processor, cores, date, times } = measured
  const others = Math.max(...Object.values(times).flatMap((each) => Object.values(each).map(({ others }) => others)))
  const { count } = Object.values(times[1])[0]
  return [
    `Processor: ${processor}, ${cores} cores; run of ${date}; medians of ${count} samples.`,
    `Other programs used up to ${digits(others)} cores (median of a case) meanwhile.`,
    `Fitted: ${giga(here.rate)} GFLOP/s, ${giga(here.memory)} GB/s, ${digits(here.inside.latency * 1e6)} µs and ${giga(here.inside.bandwidth)} GB/s between ranks; with both cores busy a rank computes ${here.together.toFixed(2)} times as long.`,
  ].join('\n')
}

/** The sections of docs/scaling.md. */
export const sectionsOf = (world: World): Record<string, string> => ({
  'scale-measured': measuredText(world),
  'scale-layers': layerTable(world),
  'scale-exchanges': exchangeTable(world),
  'scale-machines': machineTable(world),
  'scale-models': modelTable(),
  'scale-demo': `${demoText(world)}\n\n${stepTable(world, demo, false)}`,
  'scale-mixtral': stepTable(world, models[1], true),
  'scale-deepseek': stepTable(world, models[2], true),
  'scale-memory': memoryTable(),
  'scale-anchors': anchorTable(anchorsOf(world.gpus, world.here)),
})

const lineOf = (world: World, model: Model, stages: boolean): Line => ({
  name: model === demo ? `${model.name}, cores as here` : `${model.name}, H100, with stages`,
  points: rankCounts.flatMap((ranks) => {
    const { choice } = best(machineFor(world, model), model, ranks, { stages })
    return choice ? [[ranks, tokensOf(model, choice.layout) / choice.seconds] as const] : []
  }),
})

const powerOf = (value: number): string => (value >= 1e6 ? `${value / 1e6} M` : value.toLocaleString('en'))

/** The pictures of docs/scaling.md, by file. */
export function picturesOf(world: World): Record<string, string> {
  const lines = models.map((model) => lineOf(world, model, model !== demo))
  const least = models.slice(1).flatMap((model) =>
    [false, true].map((stages) => ({
      name: `${model.name}, ${stages ? 'with stages' : 'as the library is'}`,
      points: rankCounts.map((ranks) => [ranks, best(world.gpus.h100, model, ranks, { stages }).least] as const),
    })),
  )
  return {
    'scaling-tokens.svg': lineChart('Tokens per second over ranks, by the model', 'tokens/s', lines, powerOf),
    'scaling-memory.svg': lineChart('Least memory of a rank, by the model', 'bytes of a rank', least, (y) =>
      y < 1e12 ? `${y / 1e9} GB` : `${y / 1e12} TB`,
    ),
  }
}
