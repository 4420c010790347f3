import type { Spread } from '../cli/index.js'
import { main } from './main.js'
import { keyOf, type Report, readReport } from './report.js'
import { digits, markdownTable, mebibytes, withSpread } from './table.js'

/** What two reports say of one case, or of one of its ratios. */
export interface Difference {
  of: string
  unit: string
  before: Spread
  after: Spread
  /** after ÷ before */
  change: number
  /** Whether the quartiles of the two do not touch. */
  beyondSpread: boolean
}

export interface Comparison {
  differences: Difference[]
  /** In one report only. */
  removed: string[]
  added: string[]
}

function difference(of: string, unit: string, before: Spread, after: Spread): Difference {
  const beyondSpread = after.low > before.high || after.high < before.low
  return { of, unit, before, after, change: after.median / before.median, beyondSpread }
}

/** Everything with a spread: times of cases, and their ratios to others. */
function measurements(report: Report): Map<string, { of: string; unit: string; value: Spread }> {
  const all = new Map<string, { of: string; unit: string; value: Spread }>()
  for (const result of report.results) {
    const of = keyOf(result)
    if (all.has(of)) continue // a hardware limit, measured beside every case
    all.set(of, { of, unit: 'ms', value: result.wallMs })
    for (const ratio of result.ratios) {
      const unit = `${ratio.measure} of ${keyOf(ratio)}`
      all.set(`${of} ${unit}`, { of, unit, value: ratio.wall })
    }
  }
  for (const { implementation, tokens, resident } of report.memory) {
    const of = `${implementation}/memory N=${tokens}`
    // One process each: what differs by less than 2 % is the allocator's.
    all.set(of, { of, unit: 'bytes', value: { median: resident, low: resident * 0.98, high: resident * 1.02 } })
  }
  return all
}

/** The cases of two reports beside each other. */
export function compare(before: Report, after: Report): Comparison {
  const [old, now] = [measurements(before), measurements(after)]
  const differences = [...old].flatMap(([key, { of, unit, value }]) => {
    const other = now.get(key)
    return other ? [difference(of, unit, value, other.value)] : []
  })
  const missing = (from: typeof old, of: typeof old) => [...from.keys()].filter((key) => !of.has(key))
  return { differences, removed: missing(old, now), added: missing(now, old) }
}

const shown = (unit: string, value: Spread): string => (unit === 'bytes' ? mebibytes(value.median) : withSpread(value))

/** Changes beyond the spread, or with `all` everything, as text. */
export function describe({ differences, removed, added }: Comparison, all: boolean): string {
  const chosen = all ? differences : differences.filter(({ beyondSpread }) => beyondSpread)
  const rows = chosen.map(({ of, unit, before, after, change, beyondSpread }) => [
    of,
    unit,
    shown(unit, before),
    shown(unit, after),
    digits(change),
    beyondSpread ? 'beyond the spread' : '',
  ])
  const changed = differences.filter(({ beyondSpread }) => beyondSpread).length
  return [
    ...(rows.length > 0 ? [markdownTable(['case', 'unit', 'before', 'after', 'after ÷ before', ''], rows)] : []),
    `${changed} of ${differences.length} figures changed beyond the spread; ${removed.length} are in the first report only, ${added.length} in the second.`,
  ].join('\n')
}

await main(import.meta.url, 'bench:compare', (args) => {
  const all = args.includes('--all')
  const files = args.filter((arg) => arg !== '--all')
  if (files.length !== 2 || files.some((file) => file.startsWith('-')))
    throw new Error('usage: npm run bench:compare -- before.json after.json [--all]')
  const [before, after] = files.map(readReport)
  if (JSON.stringify(before.machine) !== JSON.stringify(after.machine))
    console.log(`Two machines: ${before.machine.cpu} and ${after.machine.cpu}. Only ratios can be compared.\n`)
  console.log(describe(compare(before, after), all))
})
