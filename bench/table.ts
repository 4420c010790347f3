import { find, type Report, type Result } from './report.js'
import type { Spread } from './statistics.js'

/** Rows as a Markdown table whose columns line up. */
export function markdownTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((cell, i) => Math.max(cell.length, ...rows.map((row) => row[i].length)))
  const line = (cells: readonly string[]): string => `| ${cells.map((cell, i) => cell.padEnd(widths[i])).join(' | ')} |`
  return [line(header), line(widths.map((width) => '-'.repeat(width))), ...rows.map(line)].join('\n')
}

export const digits = (value: number): string =>
  value >= 1000 ? Math.round(value).toLocaleString('en') : value.toPrecision(3)

export const withSpread = ({ median, low, high }: Spread): string =>
  `${digits(median)} (${digits(low)}–${digits(high)})`

/** Share of what the fused multiply-adds of the machine can do (or another floor), measured in the same run. */
export function shareOfPeak(report: Report, { flops, wallMs, params }: Result, name = 'fma'): number | undefined {
  const [peak] = find(report, name, { threads: params.threads })
  if (flops === undefined || peak?.flops === undefined) return undefined
  return flops / wallMs.median / (peak.flops / peak.wallMs.median)
}

export const percent = (share: number | undefined): string =>
  share === undefined ? '' : `${(share * 100).toFixed(0)} %`

/** Shares of the assignments that are kept and of the slots that are full. */
export const keptAndFull = ({ kept, occupancy }: { kept?: number; occupancy?: number }): string =>
  kept === undefined ? '' : `${percent(kept)} / ${percent(occupancy)}`

/** What was measured from JavaScript (implementation/suite/kind), and memory. st-moe-bench has printed its own lines. */
export function tableOf(report: Report): string {
  const measured = report.results.filter(({ name }) => name.split('/').length === 3)
  const rows = measured.map((result) => [
    result.name,
    Object.entries(result.params)
      .map(([key, value]) => `${key} ${value}`)
      .join(', '),
    `${withSpread(result.wallMs)} ms × ${result.samples.length}`,
    percent(shareOfPeak(report, result)),
    keptAndFull(result),
    result.ratios
      .map(({ name, params, measure, wall }) => `${withSpread(wall)} ${measure} of ${name} ${params.compute}`)
      .join('; '),
  ])
  const header = ['case', 'with', 'median (quartiles) × repetitions', 'of FMA peak', 'kept / slots full', 'ratios']
  const memory = report.memory.map(({ implementation, tokens, resident, counted }) => [
    implementation,
    String(tokens),
    mebibytes(resident),
    counted === undefined ? '' : mebibytes(counted),
  ])
  return [
    ...(rows.length > 0 ? [markdownTable(header, rows), ''] : []),
    ...(memory.length > 0 ? [markdownTable(['memory', 'N', 'resident', 'counted by memory()'], memory), ''] : []),
  ].join('\n')
}

export const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`
