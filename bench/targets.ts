import {
  besideOneDnn,
  bf16Peer,
  type Figure,
  layerFigures,
  onThreads,
  type Products,
  productFigures,
  products,
} from './figures.js'
import { besideProducts, eachProduct, growthOfThreads, type Limit, memoryParts, sharesOfPeak } from './limits.js'
import { find, type Params, type Report, type Result, ratioTo } from './report.js'
import type { Spread } from './statistics.js'
import { digits, keptAndFull, markdownTable, withSpread } from './table.js'

/** A question with the answer that we want. */
export interface Target {
  question: string
  wanted: { atLeast: number } | { atMost: number }
  figures(report: Report): Figure[]
  /** What is behind the figures, where the target is missed. */
  limit?: Limit
}

/** Those that read weights; the others are gradients of weights. */
const readingWeights = products.slice(0, 4)

type Measured = Pick<Target, 'figures' | 'limit'>

const manyRows = (rows: number): boolean => rows >= 160

const ofProducts = (which: Products, ratioOf: (result: Result) => Spread | undefined): Measured => ({
  figures: (report) => productFigures(report, which, ratioOf),
  limit: eachProduct(which, ratioOf),
})

function againstPeer(suite: string, kind: string, peer: string, params: Params = {}): Measured {
  const [name, other] = ['st-moe', peer].map((implementation) => `${implementation}/${suite}/${kind}`)
  return {
    figures: (report) => layerFigures(find(report, name, params), (r) => ratioTo(r, other, 'speed')),
    limit: sharesOfPeak((report) =>
      find(report, name, params).map((ours): [Result, Result] => [ours, find(report, other, ours.params)[0]]),
    ),
  }
}

function againstBf16(kind: string): Measured {
  const oursIn = (report: Report) => find(report, `st-moe/bf16/${kind}`, { compute: 'bf16' })
  return {
    figures: (report) => {
      const fastest = bf16Peer(report, kind)
      if (!fastest) return []
      const { compute } = fastest.params
      const how = compute === 'bf16' ? 'its weights held in bf16' : 'autocast'
      return layerFigures(
        oursIn(report),
        (result) => ratioTo(result, fastest.name, 'speed', { compute }),
        (result) => `${onThreads(Number(result.params.threads))}, ${how}`,
      )
    },
    limit: sharesOfPeak(
      (report) => oursIn(report).map((ours): [Result, Result | undefined] => [ours, bf16Peer(report, kind)]),
      ['bf16-dot', 'bf16-dot'],
    ),
  }
}

const nativeLayer = (kind: string, other: string, measure: 'time' | 'speed'): Target['figures'] => {
  return (report) => layerFigures(find(report, `layer/${kind}`, { compute: 'f32' }), (r) => ratioTo(r, other, measure))
}

const both = 'forward+backward'
const layerOf = 'layer, f32'

/** The contract: dim 512, 16 experts, top-2, 4 × 1024 tokens unless said otherwise. */
export const targets: readonly Target[] = [
  {
    question: 'six products, f32, ≥ 160 rows an expert, of the FMA peak',
    wanted: { atLeast: 0.88 },
    ...ofProducts({ compute: 'f32', rows: manyRows }, (r) => ratioTo(r, 'fma', 'flops')?.wall),
  },
  ...(['plain', 'packed'] as const).map(
    (weights): Target => ({
      question: `the same, of oneDNN's speed${weights === 'packed' ? ' with weights packed beforehand (ours are not)' : ''}`,
      wanted: { atLeast: 0.97 },
      ...ofProducts({ compute: 'f32', rows: manyRows }, (r) => besideOneDnn(r, weights)),
    }),
  ),
  {
    question: 'six products, bf16, packed weights, ≥ 160 rows, of the bf16 dot peak',
    wanted: { atLeast: 0.86 },
    ...ofProducts({ compute: 'bf16', rows: manyRows, packed: true }, (r) => ratioTo(r, 'bf16-dot', 'flops')?.wall),
  },
  {
    question: '4 rows an expert, f32, products that read weights, of a plain read of DRAM',
    wanted: { atLeast: 0.85 },
    ...ofProducts(
      { names: readingWeights, compute: 'f32', rows: (rows) => rows === 4, packed: true },
      (r) => ratioTo(r, 'dram-read', 'bytes')?.wall,
    ),
  },
  {
    question: 'forward, f32: time over that of its products alone',
    wanted: { atMost: 1.06 },
    figures: nativeLayer('forward', 'layer-products/forward', 'time'),
    limit: besideProducts('forward'),
  },
  {
    question: 'forward + backward, f32: time over that of its products alone',
    wanted: { atMost: 1.1 },
    figures: nativeLayer(both, `layer-products/${both}`, 'time'),
    limit: besideProducts(both),
  },
  ...(['forward', both] as const).map(
    (kind): Target => ({
      question: `${kind.replace('+', ' + ')}, f32: more threads against 1`,
      wanted: { atLeast: 1.9 },
      figures: nativeLayer(kind, `layer/${kind}`, 'speed'),
      limit: growthOfThreads(kind),
    }),
  ),
  {
    question: `${layerOf}, forward: times as fast as index-based PyTorch`,
    wanted: { atLeast: 1.6 },
    ...againstPeer('layer', 'forward', 'index-pytorch'),
  },
  {
    question: `${layerOf}, forward + backward: times as fast as index-based PyTorch`,
    wanted: { atLeast: 1.7 },
    ...againstPeer('layer', both, 'index-pytorch'),
  },
  ...[
    { tokens: 1024, atLeast: 2.2 },
    { tokens: 4096, atLeast: 6 },
    { tokens: 8192, atLeast: 10 },
  ].map(
    ({ tokens, atLeast }): Target => ({
      question: `${layerOf}, N = ${tokens}, forward + backward: times as fast as st-moe-pytorch`,
      wanted: { atLeast },
      ...againstPeer('growth', both, 'st-moe-pytorch', { N: tokens }),
    }),
  ),
  {
    question: 'layer, bf16, forward: times as fast as index-based PyTorch in bf16',
    wanted: { atLeast: 1.4 },
    ...againstBf16('forward'),
  },
  {
    question: 'layer, bf16, forward + backward: times as fast as index-based PyTorch in bf16',
    wanted: { atLeast: 1.8 },
    ...againstBf16(both),
  },
  {
    question: 'layer, forward + backward: bf16 against our f32',
    wanted: { atLeast: 1.7 },
    figures: (report) =>
      layerFigures(find(report, `st-moe/bf16/${both}`, { compute: 'bf16' }), (r) =>
        ratioTo(r, r.name, 'speed', { compute: 'f32' }),
      ),
    limit: sharesOfPeak(
      (report) =>
        find(report, `st-moe/bf16/${both}`, { compute: 'bf16' }).map((ours): [Result, Result] => [
          ours,
          find(report, ours.name, { compute: 'f32' })[0],
        ]),
      ['bf16-dot', 'fma'],
    ),
  },
  {
    question: "a training step of the demo's model: times as fast as with st-moe-pytorch",
    wanted: { atLeast: 2.5 },
    ...againstPeer('model', 'step', 'st-moe-pytorch'),
  },
  {
    question: 'memory of forward + backward beyond parameters and gradients, N = 4096, of that of st-moe-pytorch',
    wanted: { atMost: 0.25 },
    figures: ({ memory }) => {
      const of = (name: string) => memory.find(({ implementation }) => implementation === name)?.resident
      const [ours, theirs] = [of('st-moe'), of('st-moe-pytorch')]
      if (ours === undefined || theirs === undefined) return []
      const value = ours / theirs
      return [{ of: 'resident', value: { median: value, low: value, high: value } }]
    },
    limit: memoryParts,
  },
]

/** Null where nothing was measured. */
export function isMet({ wanted, figures }: Target, report: Report): boolean | null {
  const found = figures(report)
  if (found.length === 0) return null
  return found.every(({ value }) =>
    'atLeast' in wanted ? value.median >= wanted.atLeast : value.median <= wanted.atMost,
  )
}

function cellOf({ of, value, repetitions }: Figure): string {
  const spread = value.low === value.high ? digits(value.median) : withSpread(value)
  const few =
    repetitions !== undefined && repetitions < 3 ? `, ${repetitions} repetition${repetitions > 1 ? 's' : ''}` : ''
  return `**${spread}** ${of}${few}`
}

const sharesOf = (figures: readonly Figure[]): string =>
  [...new Set(figures.flatMap(({ shares }) => (shares ? [keptAndFull(shares)] : [])))].join('; ')

/** Targets and what was measured, as a Markdown table. */
export function targetTable(report: Report): string {
  const rows = targets.map((target) => {
    const { question, wanted } = target
    const met = isMet(target, report)
    const figures = target.figures(report)
    return [
      question,
      'atLeast' in wanted ? `≥ ${wanted.atLeast}` : `≤ ${wanted.atMost}`,
      figures.map(cellOf).join('; ') || 'not measured',
      met === null ? '–' : met ? 'met' : '**missed**',
      sharesOf(figures),
    ]
  })
  return markdownTable(['', 'target', 'measured', '', 'kept / slots full'], rows)
}

/** What is behind the targets that are missed. */
export function missedList(report: Report): string {
  const missed = targets.filter((target) => isMet(target, report) === false)
  if (missed.length === 0) return 'No target that was measured is missed.'
  return missed.map(({ question, limit }) => `- ${question}. ${limit?.(report) ?? ''}`.trimEnd()).join('\n')
}
