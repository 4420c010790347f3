import type { Spread } from '../cli/index.js'
import { geometricMean } from './geometric-mean.js'
import { find, type Measure, type Params, type Report, type Result, ratioTo } from './report.js'
import { digits, dispatched, markdownTable, ofLimits, repetitions, withSpread } from './table.js'

/** One measured figure: on which threads or sizes, and its value. */
export interface Figure {
  of: string
  value: Spread
  /** Repetitions, if they are few. */
  few?: number
  /** What is compared. */
  ours?: Result
  other?: Result
  /** The figures that it is the mean of. */
  parts?: Figure[]
}

/** A question with the answer that we want. */
export interface Target {
  question: string
  wanted: { atLeast: number } | { atMost: number }
  figures(report: Report): Figure[]
}

export const both = 'forward+backward'
export const spaced = (kind: string): string => kind.replace('+', ' + ')
export const onThreads = (count: number): string => `${count} thread${count === 1 ? '' : 's'}`
export const threadsIn = (results: readonly Result[]): number[] =>
  [...new Set(results.map(({ params }) => Number(params.threads)))].sort((a, b) => a - b)

// ---- GEMMs

export const gemms = ['a', 'y', 'dh', 'dx', 'dw1', 'dw2']

/** Which GEMMs: all six unless said otherwise; weights packed beforehand if that was measured. */
export interface Which {
  names?: readonly string[]
  compute: string
  rows: (rows: number) => boolean
  packed?: boolean
}
type RatioOf = (result: Result) => Spread | undefined

/** Geometric means over GEMMs and numbers of rows, one per number of threads. */
export function gemmFigures(
  report: Report,
  { names = gemms, compute, rows, packed = false }: Which,
  ratioOf: RatioOf,
): Figure[] {
  const chosen = names.map((name) => {
    const all = find(report, `gemm/${name}`, { compute }).filter(({ params }) => rows(Number(params.rows)))
    const packedToo = packed && all.some(({ params }) => params.weights === 'packed')
    return all.filter(({ params }) => params.weights === (packedToo ? 'packed' : 'plain'))
  })
  return threadsIn(chosen.flat()).flatMap((threads) => {
    const values = (results: readonly Result[]) =>
      results.filter(({ params }) => params.threads === threads).flatMap((result) => ratioOf(result) ?? [])
    const parts = chosen.map((results, i) => ({ of: names[i], values: values(results) }))
    if (parts.some(({ values }) => values.length === 0)) return []
    const value = geometricMean(parts.flatMap(({ values }) => values))
    return [
      { of: onThreads(threads), value, parts: parts.map(({ of, values }) => ({ of, value: geometricMean(values) })) },
    ]
  })
}

/** A weight gradient has nothing that could be packed before: there is one way of oneDNN. */
export function besideOneDnn(result: Result, weights: 'plain' | 'packed'): Spread | undefined {
  const name = result.name.replace('gemm', 'onednn')
  return (ratioTo(result, name, 'speed', { weights }) ?? ratioTo(result, name, 'speed'))?.wall
}

export const ofLimit =
  (limit: 'fma' | 'bf16-dot' | 'dram-read'): RatioOf =>
  (result) =>
    ratioTo(result, limit, limit === 'dram-read' ? 'bytes' : 'flops')?.wall

const ofGemms =
  (which: Which, ratioOf: RatioOf): Target['figures'] =>
  (report) =>
    gemmFigures(report, which, ratioOf)

// ---- the layer

/** The ratios of all results of one name to another; of two ways to compute that the other has, to the faster one. */
const versus =
  (name: string, other: string, params: Params = {}, wanted: Measure = 'speed'): Target['figures'] =>
  (report) =>
    find(report, name, params).flatMap((ours): Figure[] => {
      const ratios = ours.ratios.filter((ratio) => ratio.name === other && ratio.measure === wanted)
      const [ratio] = ratios.sort((a, b) => a.wall.median - b.wall.median)
      if (!ratio) return []
      const [beside] = find(report, other, ratio.params)
      const of = `${onThreads(Number(ours.params.threads))}${ratio.params.compute === 'autocast' ? ', autocast' : ''}`
      return [{ of, value: ratio.wall, few: ratio.turns < 3 ? ratio.turns : undefined, ours, other: beside }]
    })

const vsPeer = (what: string, peer: string, params: Params = {}): Target['figures'] =>
  versus(`st-moe/${what}`, `${peer}/${what}`, params)

const memoryRatio: Target['figures'] = ({ memory }) => {
  const [ours, theirs] = ['st-moe', 'st-moe-pytorch'].map((name) => memory.find((one) => one.implementation === name))
  if (!ours || !theirs) return []
  const value = ours.resident / theirs.resident
  return [{ of: 'resident', value: { median: value, low: value, high: value } }]
}

const atLeast = (limit: number, question: string, figures: Target['figures']): Target => {
  return { question, wanted: { atLeast: limit }, figures }
}
const atMost = (limit: number, question: string, figures: Target['figures']): Target => {
  return { question, wanted: { atMost: limit }, figures }
}

const many = { compute: 'f32', rows: (rows: number) => rows >= 160 }
const few = { names: gemms.slice(0, 4), compute: 'f32', rows: (rows: number) => rows === 4, packed: true }
const f32 = { compute: 'f32' }
const bf16 = { compute: 'bf16' }
const [index, pytorch] = ['index-pytorch', 'st-moe-pytorch']
const faster = 'times as fast as'

/** The contract: dim 512, 16 experts, top-2, 4 × 1024 tokens unless said otherwise. */
export const targets: readonly Target[] = [
  atLeast(0.88, 'six GEMMs, f32, ≥ 160 rows per expert, of the FMA peak', ofGemms(many, ofLimit('fma'))),
  atLeast(
    0.97,
    "the same, of oneDNN's speed",
    ofGemms(many, (r) => besideOneDnn(r, 'plain')),
  ),
  atLeast(
    0.97,
    "the same, of oneDNN's speed with weights packed beforehand (ours are not)",
    ofGemms(many, (r) => besideOneDnn(r, 'packed')),
  ),
  atLeast(
    0.86,
    'six GEMMs, bf16, packed weights, ≥ 160 rows, of the bf16 dot peak',
    ofGemms({ ...many, ...bf16, packed: true }, ofLimit('bf16-dot')),
  ),
  atLeast(0.85, 'weight-bound GEMMs, f32, 4 rows per expert, of DRAM bandwidth', ofGemms(few, ofLimit('dram-read'))),
  ...([1.06, 1.1] as const).map((limit, i) => {
    const kind = ['forward', both][i]
    const figures = versus(`layer/${kind}`, `layer-gemms/${kind}`, f32, 'time')
    return atMost(limit, `${spaced(kind)}, f32: time over that of its GEMMs alone`, figures)
  }),
  ...['forward', both].map((kind) =>
    atLeast(1.9, `${spaced(kind)}, f32: more threads vs. 1`, versus(`layer/${kind}`, `layer/${kind}`, f32)),
  ),
  atLeast(1.6, `layer, f32, forward: ${faster} index-based PyTorch`, vsPeer('layer/forward', index)),
  atLeast(1.7, `layer, f32, forward + backward: ${faster} index-based PyTorch`, vsPeer(`layer/${both}`, index)),
  ...Object.entries({ 1024: 2.2, 4096: 6, 8192: 10 }).map(([N, limit]) => {
    const question = `layer, f32, N = ${N}, forward + backward: ${faster} st-moe-pytorch`
    return atLeast(limit, question, vsPeer(`growth/${both}`, pytorch, { N: Number(N) }))
  }),
  atLeast(1.4, `layer, bf16, forward: ${faster} index-based PyTorch in bf16`, vsPeer('bf16/forward', index)),
  atLeast(1.8, `layer, bf16, forward + backward: ${faster} index-based PyTorch in bf16`, vsPeer(`bf16/${both}`, index)),
  atLeast(1.7, 'layer, forward + backward: bf16 vs. our f32', vsPeer(`bf16/${both}`, 'st-moe', bf16)),
  ...Object.entries({ dropless: 0.91, switch: 0.9, expertChoice: 0.9 }).flatMap(([router, limit]) =>
    ['forward', both].map((kind) => {
      const figures = versus(`${router}/routers/${kind}`, `st-moe/routers/${kind}`, f32, 'flops')
      return atLeast(limit, `${spaced(kind)}, f32, ${router}: dispatched rows per second, of those of topk`, figures)
    }),
  ),
  ...['forward', both].map((kind) =>
    atLeast(2, `SoftMoE, f32, ${spaced(kind)}: ${faster} soft-moe-pytorch`, vsPeer(`soft/${kind}`, 'soft-moe-pytorch')),
  ),
  atLeast(2.5, `a training step of the demo's model: ${faster} with st-moe-pytorch`, vsPeer('model/step', pytorch)),
  atLeast(
    3,
    'a captured training step of a model of width 16: times as fast as a call',
    versus('st-moe/capture/replay', 'st-moe/capture/call', { dim: 16 }),
  ),
  atLeast(
    20,
    "generation by the demo's model, 16 texts at once: characters per second vs. a forward of 128 for each",
    versus('st-moe/generate', 'whole-context/generate', { texts: 16 }),
  ),
  atLeast(
    0.9,
    'layer, forward + backward, in two processes of one thread: times as fast as in one process of two threads',
    versus('st-moe/processes/layer', 'st-moe/processes/layer', { processes: 2 }),
  ),
  atMost(
    1,
    "a step of the demo's model in two processes: its time, of that of its computation and 1.1 exchanges of its gradients",
    versus('st-moe/processes/demo step', 'st-moe/processes/compute and 1.1 exchanges', {}, 'time'),
  ),
  atMost(
    20,
    "ms that the event loop waits (99th percentile) while the demo's model trains and another one answers requests",
    (report) =>
      find(report, 'st-moe/server/delay', { training: 'asynchronous' }).map(({ params, wallMs }) => ({
        of: onThreads(Number(params.threads)),
        value: wallMs,
      })),
  ),
  atMost(
    0.25,
    'memory of forward + backward beyond parameters and gradients, N = 4096, of that of st-moe-pytorch',
    memoryRatio,
  ),
]

/** Null if nothing was measured. */
export function isMet({ wanted, figures }: Target, report: Report): boolean | null {
  const values = figures(report).map(({ value }) => value.median)
  if (values.length === 0) return null
  return values.every((value) => ('atLeast' in wanted ? value >= wanted.atLeast : value <= wanted.atMost))
}

/** Targets and what was measured, as a Markdown table. */
export function targetTable(report: Report): string {
  const rows = targets.map((target) => {
    const { question, wanted } = target
    const [met, figures] = [isMet(target, report), target.figures(report)]
    const cells = figures.map(({ of, value, few }) => {
      return `**${withSpread(value)}** ${of}${few === undefined ? '' : `, ${repetitions(few)}`}`
    })
    return [
      question,
      'atLeast' in wanted ? `≥ ${wanted.atLeast}` : `≤ ${wanted.atMost}`,
      cells.join('; ') || 'not measured',
      met === null ? '–' : met ? 'met' : '**missed**',
      [...new Set(figures.flatMap(({ ours }) => (ours ? [dispatched(ours)] : [])))].join('; '),
    ]
  })
  return markdownTable(['', 'target', 'measured', '', 'dispatched / capacity used'], rows)
}

/** What is behind the targets that are missed, said by other figures of the same run. */
export function missedList(report: Report): string {
  const missed = targets.filter((target) => isMet(target, report) === false)
  if (missed.length === 0) return 'No target that was measured is missed.'
  const limits = (result: Result): string =>
    `${result.name} ${result.params.compute} ${ofLimits(result, report.results)}`
  const behind = ({ of, ours, other, parts }: Figure): string[] => {
    if (parts) return [`${of}: ${parts.map((part) => `${part.of} ${digits(part.value.median)}`).join(', ')}`]
    return ours && other ? [`${of}: ${limits(ours)}, ${limits(other)}`] : []
  }
  return missed
    .map(({ question, figures }) => `- ${question}. ${figures(report).flatMap(behind).join('; ')}`)
    .join('\n')
}
