import { html, Markup } from '../markup.js'

/** Small self-contained SVG charts that follow the reader's light or dark setting. */

export type Point = readonly [x: number, y: number]

export interface Line {
  name: string
  /** A class of the style sheet below. */
  kind: 'training' | 'heldOut'
  points: readonly Point[]
}

/** A horizontal reference line. */
export interface Level {
  name: string
  value: number
}

export interface LineChart {
  title: string
  height: number
  x: { label: string; max: number }
  y: { label: string; min: number; max: number; format: (value: number) => string }
  lines: readonly Line[]
  levels?: readonly Level[]
}

export const chartWidth = 860
const left = 64
const right = 136
const top = 16
const bottom = 48

/** Custom properties; --l0 … --l8 are the levels of the expert load, --l4 an even share. */
export const chartColors = {
  light: `--ink:#22272e; --muted:#6b7280; --grid:#e4e1da; --sea:#1b6f8f; --spray:#9bc4d1; --rust:#b4541f;
  --l0:#14506b; --l1:#3f7d98; --l2:#86b1c3; --l3:#c3d8e0; --l4:#eeebe4; --l5:#f3cfae; --l6:#e6a06c; --l7:#cc6a33; --l8:#a13f12;`,
  dark: `--ink:#e5e7eb; --muted:#9aa4b2; --grid:#2b333d; --sea:#63bfe0; --spray:#35657a; --rust:#e8955a;
  --l0:#8ed8f5; --l1:#5aa9c9; --l2:#3a7690; --l3:#2b4d5d; --l4:#262c34; --l5:#553a2a; --l6:#8f5530; --l7:#cf7a3f; --l8:#f7b384;`,
}

const style = new Markup(`
.chart { ${chartColors.light}
  font-family: system-ui, -apple-system, 'Segoe UI', Inter, 'DejaVu Sans', sans-serif; font-size: 13px; width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { .chart { ${chartColors.dark} } }
.chart text { fill: var(--muted) } .chart .ink { fill: var(--ink) } .chart .end { text-anchor: end } .chart .mid { text-anchor: middle }
.chart .small { font-size: 11px } .chart .grid { stroke: var(--grid); stroke-width: 1 } .chart .strong { font-weight: 600 }
.chart path { fill: none; stroke-linejoin: round }
.chart .training { stroke: var(--spray); stroke-width: 1.5 } .chart .heldOut { stroke: var(--sea); stroke-width: 2.5 }
.chart circle.heldOut { fill: var(--sea); stroke: none } .chart text.heldOut { fill: var(--sea); stroke: none; font-weight: 600 }
.chart text.training { stroke: none } .chart .level { stroke: var(--rust); stroke-width: 1.25; stroke-dasharray: 5 4 }
.chart text.level { fill: var(--rust); stroke: none }
${Array.from({ length: 9 }, (_, i) => `.chart .l${i} { fill: var(--l${i}) }`).join(' ')}`)

/** An SVG document with this content. */
export function svg(title: string, height: number, body: readonly Markup[]): Markup {
  const size = html`viewBox="0 0 ${chartWidth} ${height}"`
  return html`<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" aria-label="${title}" ${size}>
<title>${title}</title>
<style>${style}</style>
${body}
</svg>
`
}

/** About `count` round numbers from `min` to `max`. */
export function ticks(min: number, max: number, count: number): number[] {
  const raw = (max - min) / count
  const magnitude = 10 ** Math.floor(Math.log10(raw))
  const step = [1, 2, 5, 10].map((factor) => factor * magnitude).find((candidate) => candidate >= raw * 0.999)!
  const first = Math.ceil(min / step - 1e-9)
  const last = Math.floor(max / step + 1e-9)
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step)
}

/** Moves label positions apart, in order, to at least `distance`. */
function spread(positions: readonly number[], distance: number): number[] {
  const order = positions.map((_, i) => i).sort((a, b) => positions[a] - positions[b])
  const placed = [...positions]
  for (let pass = 0; pass < 100; pass++) {
    let moved = false
    for (let i = 1; i < order.length; i++) {
      const lack = distance - (placed[order[i]] - placed[order[i - 1]])
      if (lack <= 0.01) continue
      placed[order[i]] += lack / 2
      placed[order[i - 1]] -= lack / 2
      moved = true
    }
    if (!moved) break
  }
  return placed
}

const at = (value: number): string => value.toFixed(1)

export function lineChart(chart: LineChart): Markup {
  const { x, y, height, lines, levels = [] } = chart
  const toX = (value: number): number => left + (value / x.max) * (chartWidth - left - right)
  const toY = (value: number): number => height - bottom - ((value - y.min) / (y.max - y.min)) * (height - top - bottom)
  const edge = chartWidth - right
  const visible = levels.filter(({ value }) => value >= y.min && value <= y.max)
  const labels = [
    ...visible.map(({ name, value }) => ({ text: `${name} ${y.format(value)}`, kind: 'level', y: toY(value) })),
    ...lines.map(({ name, kind, points }) => ({ text: name, kind, y: toY(points.at(-1)?.[1] ?? y.min) })),
  ]
  const positions = spread(
    labels.map((label) => label.y),
    17,
  )
  return svg(chart.title, height, [
    ...ticks(y.min, y.max, (height - top - bottom) / 36).map(
      (value) =>
        html`<line class="grid" x1="${left}" x2="${edge}" y1="${at(toY(value))}" y2="${at(toY(value))}"/>
<text class="end" x="${left - 10}" y="${at(toY(value) + 4)}">${y.format(value)}</text>`,
    ),
    ...xAxis(x, height, toX),
    html`<text class="mid" transform="rotate(-90)" x="${at(-(top + height - bottom) / 2)}" y="14">${y.label}</text>`,
    ...visible.map(({ value }) => html`<path class="level" d="M${left} ${at(toY(value))}H${edge}"/>`),
    ...lines.map(({ kind, points }) => html`<path class="${kind}" d="${pathOf(points, toX, toY)}"/>`),
    ...lines
      .filter(({ kind }) => kind === 'heldOut')
      .flatMap(({ points }) =>
        points.map((p) => html`<circle class="heldOut" cx="${at(toX(p[0]))}" cy="${at(toY(p[1]))}" r="3.5"/>`),
      ),
    ...labels.map(
      ({ text, kind }, i) => html`<text class="${kind}" x="${edge + 10}" y="${at(positions[i] + 4)}">${text}</text>`,
    ),
  ])
}

/** Labels of the horizontal axis. */
export function xAxis(x: { label: string; max: number }, height: number, toX: (value: number) => number): Markup[] {
  const middle = (left + chartWidth - right) / 2
  return [
    ...ticks(0, x.max, 6).map(
      (value) =>
        html`<text class="mid" x="${at(toX(value))}" y="${height - bottom + 20}">${value.toLocaleString('en')}</text>`,
    ),
    html`<text class="mid" x="${at(middle)}" y="${height - 8}">${x.label}</text>`,
  ]
}

function pathOf(points: readonly Point[], toX: (x: number) => number, toY: (y: number) => number): string {
  return points.map(([x, y], i) => `${i === 0 ? 'M' : 'L'}${at(toX(x))} ${at(toY(y))}`).join('')
}

/** Means over at most `count` intervals of equal length, each at its middle; a value covers `stride` steps. */
export function binned(values: readonly number[], count: number, stride: number): Point[] {
  return bins(values.length, count).map(([from, to]) => {
    let sum = 0
    for (let i = from; i < to; i++) sum += values[i]
    return [((from + to) / 2) * stride, sum / (to - from)]
  })
}

/** Splits 0 … length into at most `count` intervals. */
export function bins(length: number, count: number): [from: number, to: number][] {
  const used = Math.min(count, length)
  const bound = (i: number): number => Math.round((i * length) / used)
  return Array.from({ length: used }, (_, i) => [bound(i), bound(i + 1)])
}
