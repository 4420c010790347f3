import { onThreads, type Products, productFigures, products, threadsIn } from './figures.js'
import { find, type Report, type Result } from './report.js'
import type { Spread } from './statistics.js'
import { digits, mebibytes, percent, shareOfPeak } from './table.js'

/** What is behind a figure, said by other figures of the same run: for targets that are missed. */
export type Limit = (report: Report) => string

/** Each product by itself, beside a floor or oneDNN. */
export function eachProduct(
  { names = products, ...which }: Products,
  ratioOf: (result: Result) => Spread | undefined,
): Limit {
  return (report) => {
    const byProduct = names.map((name) => productFigures(report, { names: [name], ...which }, ratioOf))
    const threads = byProduct[0].map(({ of }) => of)
    return threads
      .map((of, i) => `${of}: ${names.map((name, k) => `${name} ${digits(byProduct[k][i].value.median)}`).join(', ')}`)
      .join('; ')
  }
}

/** What the layer does besides its products. */
export function besideProducts(kind: string): Limit {
  return (report) =>
    find(report, `layer/${kind}`, { compute: 'f32' })
      .map((layer) => {
        const { threads, compute } = layer.params
        const [alone] = find(report, `layer-products/${kind}`, { threads, compute })
        const rest = layer.wallMs.median - alone.wallMs.median
        return `${onThreads(Number(threads))}: products alone ${digits(alone.wallMs.median)} ms, routing, gathering, GEGLU, combining and sums ${digits(rest)} ms`
      })
      .join('; ')
}

/** How the floors and the products alone grow with threads. */
export function growthOfThreads(kind: string): Limit {
  return (report) => {
    const layers = find(report, `layer/${kind}`, { compute: 'f32' })
    const counts = threadsIn(layers)
    const [first, last] = [counts[0], counts.at(-1)!]
    const gain = (name: string, work: 'flops' | 'bytes', params = {}) => {
      const [one, all] = [first, last].map((threads) => find(report, name, { ...params, threads })[0])
      return digits(all[work]! / all.wallMs.median / (one[work]! / one.wallMs.median))
    }
    return `${onThreads(last)} against ${onThreads(first)}: fused multiply-adds alone ${gain('fma', 'flops')} times, a read of DRAM ${gain('dram-read', 'bytes')}, the products alone ${gain(`layer-products/${kind}`, 'flops', { compute: 'f32' })}`
  }
}

/** Which share of a peak each of two results reaches, counting products of kept rows. */
export function sharesOfPeak(
  pairs: (report: Report) => [ours: Result, other: Result | undefined][],
  [peak, otherPeak] = ['fma', 'fma'],
): Limit {
  return (report) =>
    pairs(report)
      .flatMap(([ours, other]) => {
        if (!other) return []
        const shares = [shareOfPeak(report, ours, peak), shareOfPeak(report, other, otherPeak)]
        if (shares.includes(undefined)) return []
        const [own, theirs] = shares.map(percent)
        return `${onThreads(Number(ours.params.threads))}: ${ours.name} ${ours.params.compute} ${own} of the ${peak} peak, ${other.name} ${other.params.compute} ${theirs} of the ${otherPeak} peak`
      })
      .join('; ')
}

/** What memory() counts, and what is scratch memory and cache besides. */
export const memoryParts: Limit = ({ memory }) =>
  memory
    .filter(({ implementation }) => implementation === 'st-moe')
    .map(
      ({ resident, counted = 0 }) =>
        `tensors ${mebibytes(counted)}, scratch memory of the kernels and what the allocator keeps ${mebibytes(resident - counted)}`,
    )
    .join()
