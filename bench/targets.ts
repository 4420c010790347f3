import { find, type Params, type Report, type Result, ratioTo } from './report.js'
import { geometricMeanOf, type Spread } from './statistics.js'
import { digits, keptAndFull, markdownTable, withSpread } from './table.js'

/** One measured figure: on which threads or sizes, and its value. */
export interface Figure {
  of: string
  value: Spread
  shares?: { kept: number; occupancy: number }
  repetitions?: number
}

/** A question with the answer that we want. */
export interface Target {
  question: string
  wanted: { atLeast: number } | { atMost: number }
  figures(report: Report): Figure[]
}

const products = ['a', 'y', 'dh', 'dx', 'dw1', 'dw2']
/** Those that read weights; the others are gradients of weights. */
const readingWeights = products.slice(0, 4)

export const threadsIn = (results: readonly Result[]): number[] =>
  [...new Set(results.map(({ params }) => Number(params.threads)))].sort((a, b) => a - b)
export const onThreads = (count: number): string => `${count} thread${count === 1 ? '' : 's'}`

/** Weights packed beforehand where that is how it was measured, else as they are. */
function packedOrPlain(candidates: readonly Result[]): Result | undefined {
  return candidates.find(({ params }) => params.weights === 'packed') ?? candidates[0]
}

interface Products {
  names?: readonly string[]
  compute: string
  rows: (rows: number) => boolean
  packed?: boolean
}

/** Geometric means over products and numbers of rows, one for each number of threads. */
export function productFigures(
  report: Report,
  { names = products, compute, rows, packed = false }: Products,
  ratioOf: (result: Result) => Spread | undefined,
): Figure[] {
  const all = names
    .flatMap((name) => find(report, `gemm/${name}`, { compute }))
    .filter((r) => rows(Number(r.params.rows)))
  return threadsIn(all).flatMap((threads) => {
    const here = all.filter(({ params }) => params.threads === threads)
    const cases = new Set(here.map(({ name, params }) => `${name} ${params.rows}`))
    const values = [...cases].map((one) => {
      const ways = here.filter(({ name, params }) => `${name} ${params.rows}` === one)
      const chosen = packed ? packedOrPlain(ways) : ways.find(({ params }) => params.weights === 'plain')
      return chosen && ratioOf(chosen)
    })
    if (values.length === 0 || values.some((value) => value === undefined)) return []
    return [{ of: onThreads(threads), value: geometricMeanOf(values as Spread[]) }]
  })
}

/** A gradient of weights has nothing to be packed before: there is one way of oneDNN. */
export function besideOneDnn(result: Result, weights: 'plain' | 'packed'): Spread | undefined {
  const name = result.name.replace('gemm', 'onednn')
  return (ratioTo(result, name, 'speed', { weights }) ?? ratioTo(result, name, 'speed'))?.wall
}

/** The ratio of each result of that name. */
function layerFigures(
  results: readonly Result[],
  ratioOf: (result: Result) => Spread | undefined,
  of = ({ params }: Result): string => onThreads(Number(params.threads)),
): Figure[] {
  return results.flatMap((result) => {
    const value = ratioOf(result)
    if (!value) return []
    const { kept, occupancy, samples } = result
    const shares = kept !== undefined && occupancy !== undefined ? { kept, occupancy } : undefined
    return [{ of: of(result), value, shares, repetitions: samples.length }]
  })
}

const againstPeer = (suite: string, kind: string, other: string, params: Params): Target['figures'] => {
  const name = `st-moe/${suite}/${kind}`
  return (report) =>
    layerFigures(find(report, name, params), (r) => ratioTo(r, `${other}/${suite}/${kind}`, 'speed')?.wall)
}

/** The faster of the two ways that PyTorch has to compute in bf16. */
export function bf16Peer(report: Report, kind: string): Result | undefined {
  return find(report, `index-pytorch/bf16/${kind}`).sort((a, b) => a.wallMs.median - b.wallMs.median)[0]
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
