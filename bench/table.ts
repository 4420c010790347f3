import type { Spread } from '../cli/index.js'
import type { Facts, Ratio, Result } from './report.js'

/** Rows as a Markdown table whose columns line up. */
export function markdownTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((cell, i) => Math.max(3, cell.length, ...rows.map((row) => row[i].length)))
  const line = (cells: readonly string[]): string => `| ${cells.map((cell, i) => cell.padEnd(widths[i])).join(' | ')} |`
  return [line(header), line(widths.map((width) => '-'.repeat(width))), ...rows.map(line)].join('\n')
}

export const digits = (value: number): string =>
  value >= 1000 ? Math.round(value).toLocaleString('en') : value.toPrecision(3)

export const withSpread = ({ median, low, high }: Spread): string =>
  low === high ? digits(median) : `${digits(median)} (${digits(low)}–${digits(high)})`

export const percent = (fraction: number): string => `${(fraction * 100).toFixed(0)} %`

export const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`

export const repetitions = (count: number): string => `${count} repetition${count === 1 ? '' : 's'}`

/** Fractions of the assignments that are dispatched and of the capacity that they use. */
export const dispatched = ({ kept, occupancy }: Pick<Facts, 'kept' | 'occupancy'>): string =>
  kept === undefined || occupancy === undefined ? '' : `${percent(kept)} / ${percent(occupancy)}`

export function workPerSecond({ flops, bytes, deviceMs, wallMs }: Result): string {
  const rate = (work: number) => digits((work / (deviceMs ?? wallMs).median) * 1e-6)
  if (flops !== undefined) return `${rate(flops)} GFLOP/s`
  return bytes === undefined ? '' : `${rate(bytes)} GB/s`
}

/**
 * What a case reaches of the hardware limits: of those that were measured beside it, else of the arithmetic on as many
 * threads that `all` has.
 */
export function ofLimits(result: Result, all: readonly Result[]): string {
  const beside = result.ratios.filter(({ measure }) => measure === 'flops' || measure === 'bytes')
  if (beside.length > 0) return beside.map(({ name, wall }) => `${percent(wall.median)} of ${name}`).join(', ')
  const wanted = result.params.compute === 'f32' ? 'fma' : 'bf16-dot'
  const peak = all.find(({ name, params }) => name === wanted && params.threads === result.params.threads)
  if (result.flops === undefined || peak?.flops === undefined) return ''
  return `${percent(result.flops / result.wallMs.median / (peak.flops / peak.wallMs.median))} of ${wanted}`
}

const text = (params: Facts['params']): string =>
  Object.entries(params)
    .map(([key, value]) => `${key} ${value}`)
    .join(', ')

/** What another case has that this one has not: parts of its name, and parameters. */
function differing(own: Result, other: Ratio): string {
  const names = other.name.split('/').filter((part, i) => part !== own.name.split('/')[i])
  const params = Object.entries(other.params).filter(([key, value]) => own.params[key] !== value)
  return [...names, ...(params.length > 0 ? [text(Object.fromEntries(params))] : [])].join(' ')
}

function versus(own: Result, ratio: Ratio, all: readonly Result[]): string {
  const other = all.find(({ name, params }) => name === ratio.name && text(params) === text(ratio.params))
  const times = other ? `${withSpread(other.wallMs)} ms, ` : ''
  const few = ratio.turns < 3 ? `, ${repetitions(ratio.turns)}` : ''
  const value = `**${digits(ratio.wall.median)}${ratio.measure === 'speed' ? '×' : ''}**`
  return `${differing(own, ratio)}: ${times}${value}${few}`
}

const columns: [header: string, cell: (result: Result, all: readonly Result[]) => string][] = [
  ['case', ({ name }) => name],
  ['with', ({ params }) => text(params)],
  ['ms', ({ wallMs }) => withSpread(wallMs)],
  ['ms of the GPU', ({ deviceMs }) => (deviceMs ? withSpread(deviceMs) : '')],
  ['rate', (result, all) => ofLimits(result, all) || workPerSecond(result)],
  ['dispatched / capacity used', dispatched],
  [
    'vs. (× as fast, else times as long)',
    (result, all) =>
      result.ratios
        .filter(({ measure }) => measure === 'time' || measure === 'speed')
        .map((ratio) => versus(result, ratio, all))
        .join('; '),
  ],
  ['kernels + GEMMs', ({ kernels, gemms }) => (kernels === undefined ? '' : `${kernels} + ${gemms}`)],
]

/** The results as a table, without columns that would be empty. `all` has what they are compared with. */
export function resultTable(results: readonly Result[], all: readonly Result[]): string {
  if (results.length === 0) return 'not measured'
  const cells = columns.map(([header, cell]) => [header, ...results.map((result) => cell(result, all))])
  const used = cells.filter(([, ...rows]) => rows.some((row) => row !== ''))
  const [header, ...rows] = [...Array(results.length + 1).keys()].map((i) => used.map((column) => column[i]))
  return markdownTable(header, rows)
}

/** A result in a line. */
export const lineOf = (result: Result, all: readonly Result[]): string =>
  columns
    .map(([, cell]) => cell(result, all))
    .filter((cell) => cell !== '')
    .join(', ')
