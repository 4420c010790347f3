import { find, type Ratio, type Report, type Result, ratioTo } from './report.js'
import { geometricMeanOf, type Spread } from './statistics.js'

/** One measured figure: on which threads or sizes, and its value. */
export interface Figure {
  of: string
  value: Spread
  shares?: { kept: number; occupancy: number }
  repetitions?: number
}

export const products = ['a', 'y', 'dh', 'dx', 'dw1', 'dw2']
export const threadsIn = (results: readonly Result[]): number[] =>
  [...new Set(results.map(({ params }) => Number(params.threads)))].sort((a, b) => a - b)
export const onThreads = (count: number): string => `${count} thread${count === 1 ? '' : 's'}`

/** Weights packed beforehand where that is how it was measured, else as they are. */
function packedOrPlain(candidates: readonly Result[]): Result | undefined {
  return candidates.find(({ params }) => params.weights === 'packed') ?? candidates[0]
}

/** Which products: all six unless said; by the number format and rows an expert. */
export interface Products {
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
export function layerFigures(
  results: readonly Result[],
  ratioOf: (result: Result) => Ratio | undefined,
  of = ({ params }: Result): string => onThreads(Number(params.threads)),
): Figure[] {
  return results.flatMap((result) => {
    const ratio = ratioOf(result)
    if (!ratio) return []
    const { kept, occupancy, samples } = result
    const shares = kept !== undefined && occupancy !== undefined ? { kept, occupancy } : undefined
    return [{ of: of(result), value: ratio.wall, shares, repetitions: ratio.turns ?? samples.length }]
  })
}

/** The faster of the two ways that PyTorch has to compute in bf16. */
export function bf16Peer(report: Report, kind: string): Result | undefined {
  return find(report, `index-pytorch/bf16/${kind}`).sort((a, b) => a.wallMs.median - b.wallMs.median)[0]
}
