import type { Entry, Part, ReceivedRun, RunAbout } from '../messages.js'
import { Chart, type ChartOptions, type Curve, type Table } from './charts.js'
import { integer, lossText, lossUnit, percent, rateText } from './dom.js'

/** A chart and what it shows. */
export interface Plot {
  chart: Chart
  large: boolean
  tables(runs: readonly ReceivedRun[]): Table[]
  levels?(runs: readonly ReceivedRun[]): Record<string, number>
}

/** Values of the entries, each at its last step; those that were not recorded are left out. */
function entriesTable({ part, about }: ReceivedRun, value: ValueOf): Table {
  const table: Table = [[], []]
  for (const [i, entry] of part?.entries.list.entries() ?? []) {
    const y = value(entry, about)
    if (y === undefined) continue
    table[0].push(Math.min((i + 1) * part!.stride, part!.steps))
    table[1].push(y)
  }
  return table
}

type ValueOf = (entry: Entry, about: RunAbout) => number | undefined

const heldOutTable = (part: Part | null): Table => [
  part?.evaluations.list.map(({ step }) => step) ?? [],
  part?.evaluations.list.map(({ loss }) => loss) ?? [],
]

const trainingTable = (run: ReceivedRun): Table => entriesTable(run, ([loss]) => loss)

/** The charts of one run. */
export function plotsOfOne(): Plot[] {
  const loss = new Chart({
    title: 'Loss',
    label: `loss, ${lossUnit}`,
    height: 340,
    format: lossText,
    curves: [
      { name: 'training', color: '--spray' },
      { name: 'held out', color: '--sea', width: 2.5, points: true },
    ],
  })
  return [
    {
      chart: loss,
      large: true,
      tables: ([run]) => [trainingTable(run), heldOutTable(run.part)],
      levels: ([{ part }]) => part?.baselines ?? {},
    },
    ...smallPlots([{ name: '', color: '--sea' }]),
  ]
}

const colors = 8

/** Colors repeat with dashes. */
const curveOf = ({ about }: ReceivedRun, i: number): Curve => ({
  name: about.name,
  color: colorOf(i),
  ...(i >= colors && { dash: [6, 4] }),
})
export const colorOf = (run: number): string => `--run${run % colors}`

/** The charts of several runs, a curve each. */
export function plotsOfMany(runs: readonly ReceivedRun[]): Plot[] {
  const curves = runs.map(curveOf)
  const chart = (title: string, style: Partial<Curve>): Chart =>
    new Chart({
      title,
      label: `loss, ${lossUnit}`,
      height: 320,
      format: lossText,
      curves: curves.map((curve) => ({ ...curve, ...style })),
    })
  return [
    {
      chart: chart('Held-out loss', { width: 2.25, points: true }),
      large: true,
      tables: (all) => all.map(({ part }) => heldOutTable(part)),
    },
    { chart: chart('Training loss', {}), large: true, tables: (all) => all.map(trainingTable) },
    ...smallPlots(curves),
  ]
}

function smallPlots(curves: readonly Curve[]): Plot[] {
  const plot = (options: Omit<ChartOptions, 'height' | 'curves'>, value: ValueOf): Plot => ({
    chart: new Chart({ ...options, height: 200, fromZero: true, curves }),
    large: false,
    tables: (runs) => runs.map((run) => entriesTable(run, value)),
  })
  return [
    plot({ title: 'Throughput', label: 'characters per second', format: integer }, (entry, { charactersPerStep }) =>
      entry[3] ? charactersPerStep / entry[3] : undefined,
    ),
    plot({ title: 'Learning rate', label: 'learning rate', format: rateText, axis: 64 }, (entry) => entry[2]),
    plot(
      {
        title: 'Dropped tokens',
        label: 'share of the tokens',
        format: (share) => percent(share),
        tick: (share) => `${Number((share * 100).toPrecision(3))} %`,
      },
      ([, dropped]) => dropped,
    ),
  ]
}
