import type { Spread } from '../lib/cli/bench/statistics.js'
import { find, keyOf, type Report, type Result } from './report.js'

/** Rows as a Markdown table whose columns line up. */
export function markdownTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((cell, i) => Math.max(cell.length, ...rows.map((row) => row[i].length)))
  const line = (cells: readonly string[]): string => `| ${cells.map((cell, i) => cell.padEnd(widths[i])).join(' | ')} |`
  return [line(header), line(widths.map((width) => '-'.repeat(width))), ...rows.map(line)].join('\n')
}

export const digits = (value: number): string =>
  value >= 1000 ? Math.round(value).toLocaleString('en') : value.toPrecision(3)

export const withSpread = ({ median, low, high }: Spread): string =>
  low === high ? digits(median) : `${digits(median)} (${digits(low)}–${digits(high)})`

export const percent = (fraction: number | undefined): string =>
  fraction === undefined ? '' : `${(fraction * 100).toFixed(0)} %`

export const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`

/** Fraction of what the arithmetic of the machine can do, measured in the same run. */
export function ofPeak(report: Report, { flops, wallMs, params }: Result, name = 'fma'): number | undefined {
  const [peak] = find(report, name, { threads: params.threads })
  if (flops === undefined || peak?.flops === undefined) return undefined
  return flops / wallMs.median / (peak.flops / peak.wallMs.median)
}

/** Fractions of the assignments that are dispatched and of the capacity that they use. */
export const dispatched = ({ kept, occupancy }: { kept?: number; occupancy?: number }): string =>
  kept === undefined ? '' : `${percent(kept)} / ${percent(occupancy)}`

export const workPerSecond = ({ flops, bytes, deviceMs, wallMs }: Result): string[] => {
  const { median } = deviceMs ?? wallMs
  return [
    ...(flops === undefined ? [] : [`${digits((flops / median) * 1e-6)} GFLOP/s`]),
    ...(bytes === undefined ? [] : [`${digits((bytes / median) * 1e-6)} GB/s`]),
  ]
}

/** What was measured of a case, in a line. */
export function lineOf(result: Result): string {
  const ratios = result.ratios.map(({ name, params, measure, wall }) => {
    const compute = params.compute === undefined ? '' : ` ${params.compute}`
    return `${withSpread(wall)} ${measure} of ${name}${compute}`
  })
  const parts = [`${withSpread(result.wallMs)} ms`, ...workPerSecond(result), ...ratios, dispatched(result)]
  return `${keyOf(result)}: ${parts.filter((part) => part !== '').join(', ')}`
}
