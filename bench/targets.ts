import { geometricMean, type Spread } from '../lib/cli/bench/statistics.js'
import { find, type Params, type Report, type Result, ratioTo } from './report.js'
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

const manyRows = (rows: number): boolean => rows >= 160

function ofGemms(question: string, atLeast: number, which: Which, ratioOf: RatioOf): Target {
  return { question, wanted: { atLeast }, figures: (report) => gemmFigures(report, which, ratioOf) }
}

// ---- the layer

/** The ratios of all results of one name to those of another. */
function figuresOf(
  report: Report,
  results: readonly Result[],
  other: string,
  measure: 'time' | 'speed',
  how: Params = {},
) {
  return results.flatMap((ours): Figure[] => {
    const ratio = ratioTo(ours, other, measure, how)
    if (!ratio) return []
    const [beside] = find(report, other, ratio.params)
    const few = ratio.turns < 3 ? ratio.turns : undefined
    return [{ of: onThreads(Number(ours.params.threads)), value: ratio.wall, few, ours, other: beside }]
  })
}

const nativeLayer =
  (kind: string, other: string, measure: 'time' | 'speed'): Target['figures'] =>
  (report) =>
    figuresOf(report, find(report, `layer/${kind}`, { compute: 'f32' }), other, measure)

const againstPeer =
  (suite: string, kind: string, peer: string, params: Params = {}): Target['figures'] =>
  (report) =>
    figuresOf(report, find(report, `st-moe/${suite}/${kind}`, params), `${peer}/${suite}/${kind}`, 'speed')

const bf16Layer =
  (kind: string, other: (report: Report) => Result | undefined): Target['figures'] =>
  (report) => {
    const beside = other(report)
    if (!beside) return []
    const { compute } = beside.params
    const ours = find(report, `st-moe/bf16/${kind}`, { compute: 'bf16' })
    const how = { bf16: ', its weights held in bf16', autocast: ', autocast', f32: '' }[String(compute)]
    return figuresOf(report, ours, beside.name, 'speed', { compute }).map((one) => ({ ...one, of: `${one.of}${how}` }))
  }

/** The faster of the two ways that PyTorch has to compute in bf16. */
export const bf16Peer = (report: Report, kind: string): Result | undefined =>
  find(report, `index-pytorch/bf16/${kind}`).sort((a, b) => a.wallMs.median - b.wallMs.median)[0]

const layer = 'layer, f32'
const faster = 'times as fast as'

/** The contract: dim 512, 16 experts, top-2, 4 × 1024 tokens unless said otherwise. */
export const targets: readonly Target[] = [
  ofGemms(
    'six GEMMs, f32, ≥ 160 rows per expert, of the FMA peak',
    0.88,
    { compute: 'f32', rows: manyRows },
    ofLimit('fma'),
  ),
  ofGemms("the same, of oneDNN's speed", 0.97, { compute: 'f32', rows: manyRows }, (r) => besideOneDnn(r, 'plain')),
  ofGemms(
    "the same, of oneDNN's speed with weights packed beforehand (ours are not)",
    0.97,
    { compute: 'f32', rows: manyRows },
    (r) => besideOneDnn(r, 'packed'),
  ),
  ofGemms(
    'six GEMMs, bf16, packed weights, ≥ 160 rows, of the bf16 dot peak',
    0.86,
    { compute: 'bf16', rows: manyRows, packed: true },
    ofLimit('bf16-dot'),
  ),
  ofGemms(
    'weight-bound GEMMs, f32, 4 rows per expert, of DRAM bandwidth',
    0.85,
    { names: gemms.slice(0, 4), compute: 'f32', rows: (rows) => rows === 4, packed: true },
    ofLimit('dram-read'),
  ),
  ...[
    { kind: 'forward', atMost: 1.06 },
    { kind: both, atMost: 1.1 },
  ].map(({ kind, atMost }) => ({
    question: `${spaced(kind)}, f32: time over that of its GEMMs alone`,
    wanted: { atMost },
    figures: nativeLayer(kind, `layer-gemms/${kind}`, 'time'),
  })),
  ...['forward', both].map((kind) => ({
    question: `${spaced(kind)}, f32: more threads vs. 1`,
    wanted: { atLeast: 1.9 },
    figures: nativeLayer(kind, `layer/${kind}`, 'speed'),
  })),
  ...[
    { kind: 'forward', atLeast: 1.6 },
    { kind: both, atLeast: 1.7 },
  ].map(({ kind, atLeast }) => ({
    question: `${layer}, ${spaced(kind)}: ${faster} index-based PyTorch`,
    wanted: { atLeast },
    figures: againstPeer('layer', kind, 'index-pytorch'),
  })),
  ...[
    { N: 1024, atLeast: 2.2 },
    { N: 4096, atLeast: 6 },
    { N: 8192, atLeast: 10 },
  ].map(({ N, atLeast }) => ({
    question: `${layer}, N = ${N}, forward + backward: ${faster} st-moe-pytorch`,
    wanted: { atLeast },
    figures: againstPeer('growth', both, 'st-moe-pytorch', { N }),
  })),
  ...[
    { kind: 'forward', atLeast: 1.4 },
    { kind: both, atLeast: 1.8 },
  ].map(({ kind, atLeast }) => ({
    question: `layer, bf16, ${spaced(kind)}: ${faster} index-based PyTorch in bf16`,
    wanted: { atLeast },
    figures: bf16Layer(kind, (report) => bf16Peer(report, kind)),
  })),
  {
    question: 'layer, forward + backward: bf16 vs. our f32',
    wanted: { atLeast: 1.7 },
    figures: bf16Layer(both, (report) => find(report, `st-moe/bf16/${both}`, { compute: 'f32' })[0]),
  },
  {
    question: `a training step of the demo's model: ${faster} with st-moe-pytorch`,
    wanted: { atLeast: 2.5 },
    figures: againstPeer('model', 'step', 'st-moe-pytorch'),
  },
  {
    question: 'memory of forward + backward beyond parameters and gradients, N = 4096, of that of st-moe-pytorch',
    wanted: { atMost: 0.25 },
    figures: ({ memory }) => {
      const [ours, theirs] = ['st-moe', 'st-moe-pytorch'].map((name) =>
        memory.find((one) => one.implementation === name),
      )
      if (!ours || !theirs) return []
      const value = ours.resident / theirs.resident
      return [{ of: 'resident', value: { median: value, low: value, high: value } }]
    },
  },
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
