import { besideOneDnn, bf16Peer, type Figure, layerFigures, onThreads, productFigures, products } from './figures.js'
import { find, type Params, type Report, ratioTo } from './report.js'
import { digits, keptAndFull, markdownTable, withSpread } from './table.js'

/** A question with the answer that we want. */
export interface Target {
  question: string
  wanted: { atLeast: number } | { atMost: number }
  figures(report: Report): Figure[]
}

/** Those that read weights; the others are gradients of weights. */
const readingWeights = products.slice(0, 4)

const againstPeer = (suite: string, kind: string, other: string, params: Params): Target['figures'] => {
  const name = `st-moe/${suite}/${kind}`
  return (report) =>
    layerFigures(find(report, name, params), (r) => ratioTo(r, `${other}/${suite}/${kind}`, 'speed')?.wall)
}

const againstBf16 =
  (kind: string): Target['figures'] =>
  (report) => {
    const fastest = bf16Peer(report, kind)
    if (!fastest) return []
    const { compute } = fastest.params
    const how = compute === 'bf16' ? 'its weights held in bf16' : 'autocast'
    return layerFigures(
      find(report, `st-moe/bf16/${kind}`, { compute: 'bf16' }),
      (result) => ratioTo(result, fastest.name, 'speed', { compute })?.wall,
      (result) => `${onThreads(Number(result.params.threads))}, ${how}`,
    )
  }

const nativeLayer = (kind: string, other: string, measure: 'time' | 'speed'): Target['figures'] => {
  return (report) =>
    layerFigures(find(report, `layer/${kind}`, { compute: 'f32' }), (r) => ratioTo(r, other, measure)?.wall)
}

const both = 'forward+backward'
const layerOf = 'layer, f32'

/** The contract: dim 512, 16 experts, top-2, 4 × 1024 tokens unless said otherwise. */
export const targets: readonly Target[] = [
  {
    question: 'six products, f32, ≥ 160 rows an expert, of the FMA peak',
    wanted: { atLeast: 0.88 },
    figures: (report) =>
      productFigures(report, { compute: 'f32', rows: (rows) => rows >= 160 }, (r) => ratioTo(r, 'fma', 'flops')?.wall),
  },
  ...(['plain', 'packed'] as const).map(
    (weights): Target => ({
      question: `the same, of oneDNN's speed${weights === 'packed' ? ' with weights packed beforehand (ours are not)' : ''}`,
      wanted: { atLeast: 0.97 },
      figures: (report) =>
        productFigures(report, { compute: 'f32', rows: (rows) => rows >= 160 }, (r) => besideOneDnn(r, weights)),
    }),
  ),
  {
    question: 'six products, bf16, packed weights, ≥ 160 rows, of the bf16 dot peak',
    wanted: { atLeast: 0.86 },
    figures: (report) =>
      productFigures(
        report,
        { compute: 'bf16', rows: (rows) => rows >= 160, packed: true },
        (r) => ratioTo(r, 'bf16-dot', 'flops')?.wall,
      ),
  },
  {
    question: '4 rows an expert, f32, products that read weights, of a plain read of DRAM',
    wanted: { atLeast: 0.85 },
    figures: (report) =>
      productFigures(
        report,
        { names: readingWeights, compute: 'f32', rows: (rows) => rows === 4, packed: true },
        (r) => ratioTo(r, 'dram-read', 'bytes')?.wall,
      ),
  },
  {
    question: 'forward, f32: time over that of its products alone',
    wanted: { atMost: 1.06 },
    figures: nativeLayer('forward', 'layer-products/forward', 'time'),
  },
  {
    question: 'forward + backward, f32: time over that of its products alone',
    wanted: { atMost: 1.1 },
    figures: nativeLayer(both, `layer-products/${both}`, 'time'),
  },
  ...(['forward', both] as const).map(
    (kind): Target => ({
      question: `${kind.replace('+', ' + ')}, f32: more threads against 1`,
      wanted: { atLeast: 1.9 },
      figures: nativeLayer(kind, `layer/${kind}`, 'speed'),
    }),
  ),
  {
    question: `${layerOf}, forward: times as fast as index-based PyTorch`,
    wanted: { atLeast: 1.6 },
    figures: againstPeer('layer', 'forward', 'index-pytorch', {}),
  },
  {
    question: `${layerOf}, forward + backward: times as fast as index-based PyTorch`,
    wanted: { atLeast: 1.7 },
    figures: againstPeer('layer', both, 'index-pytorch', {}),
  },
  ...[
    { tokens: 1024, atLeast: 2.2 },
    { tokens: 4096, atLeast: 6 },
    { tokens: 8192, atLeast: 10 },
  ].map(
    ({ tokens, atLeast }): Target => ({
      question: `${layerOf}, N = ${tokens}, forward + backward: times as fast as st-moe-pytorch`,
      wanted: { atLeast },
      figures: againstPeer('growth', both, 'st-moe-pytorch', { N: tokens }),
    }),
  ),
  {
    question: 'layer, bf16, forward: times as fast as index-based PyTorch in bf16',
    wanted: { atLeast: 1.4 },
    figures: againstBf16('forward'),
  },
  {
    question: 'layer, bf16, forward + backward: times as fast as index-based PyTorch in bf16',
    wanted: { atLeast: 1.8 },
    figures: againstBf16(both),
  },
  {
    question: 'layer, forward + backward: bf16 against our f32',
    wanted: { atLeast: 1.7 },
    figures: (report) =>
      layerFigures(
        find(report, `st-moe/bf16/${both}`, { compute: 'bf16' }),
        (r) => ratioTo(r, r.name, 'speed', { compute: 'f32' })?.wall,
      ),
  },
  {
    question: "a training step of the demo's model: times as fast as with st-moe-pytorch",
    wanted: { atLeast: 2.5 },
    figures: againstPeer('model', 'step', 'st-moe-pytorch', {}),
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
