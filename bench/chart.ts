import { html, Markup } from '../lib/cli/markup.js'

/** Charts over sizes, as SVG that follows the reader's light or dark setting. */

export type Point = readonly [x: number, y: number]

export interface Line {
  name: string
  points: readonly Point[]
}

export interface Axis {
  label: string
  ticks: readonly number[]
  format: (value: number) => string
}

export interface Panel {
  /** Logarithmic, from the first tick to the last. */
  x: Axis
  y: Axis & { log: boolean }
  /** Lines of one name look the same in all panels. */
  lines: readonly Line[]
}

const [panelHeight, top, bottom, left, right] = [250, 44, 46, 62, 18]
const style = `text { font: 12px system-ui, sans-serif; fill: #6b7280 } .mid { text-anchor: middle } .end { text-anchor: end }
.grid { stroke: #888; stroke-opacity: 0.3 } path { fill: none; stroke-width: 2.25; stroke-linejoin: round }
.s0 { stroke: #1b6f8f } .s1 { stroke: #86b1c3 } .s2 { stroke: #b4541f } circle { stroke: none }
circle.s0 { fill: #1b6f8f } circle.s1 { fill: #86b1c3 } circle.s2 { fill: #b4541f }
@media (prefers-color-scheme: dark) { text { fill: #9aa4b2 } .s0 { stroke: #63bfe0 } .s1 { stroke: #35657a } .s2 { stroke: #e8955a }
circle.s0 { fill: #63bfe0 } circle.s1 { fill: #35657a } circle.s2 { fill: #e8955a } }`

const at = (value: number): string => value.toFixed(1)

function scale(ticks: readonly number[], log: boolean, from: number, to: number): (value: number) => number {
  const f = log ? Math.log : (value: number) => value
  const [first, last] = [f(ticks[0]), f(ticks.at(-1)!)]
  return (value) => from + ((f(value) - first) / (last - first)) * (to - from)
}

function draw({ x, y, lines }: Panel, names: readonly string[], x0: number, width: number): Markup[] {
  const [begin, end, base] = [x0 + left, x0 + width - right, top + panelHeight]
  const toX = scale(x.ticks, true, begin, end)
  const toY = scale(y.ticks, y.log, base, top)
  return [
    ...y.ticks.map(
      (value) =>
        html`<line class="grid" x1="${begin}" x2="${end}" y1="${at(toY(value))}" y2="${at(toY(value))}"/><text class="end" x="${begin - 8}" y="${at(toY(value) + 4)}">${y.format(value)}</text>`,
    ),
    ...x.ticks.map((value) => html`<text class="mid" x="${at(toX(value))}" y="${base + 18}">${x.format(value)}</text>`),
    html`<text class="mid" x="${at((begin + end) / 2)}" y="${base + 38}">${x.label}</text>`,
    html`<text class="mid" transform="rotate(-90)" x="${at(-(top + base) / 2)}" y="${x0 + 14}">${y.label}</text>`,
    ...lines.flatMap(({ name, points }) => {
      const look = `s${names.indexOf(name) % 3}`
      const places = points.map(([px, py]) => [at(toX(px)), at(toY(py))])
      return [
        html`<path class="${look}" d="M${places.map((place) => place.join(' ')).join('L')}"/>`,
        ...places.map(([cx, cy]) => html`<circle class="${look}" cx="${cx}" cy="${cy}" r="3.5"/>`),
      ]
    }),
  ]
}

/** Panels side by side, with one legend. */
export function chart(title: string, panels: readonly Panel[], width: number): string {
  const names = [...new Set(panels.flatMap(({ lines }) => lines.map(({ name }) => name)))]
  const legend = names.map(
    (name, i) =>
      html`<path class="s${i % 3}" d="M${left + i * 170} 18h20"/><text x="${left + 26 + i * 170}" y="22">${name}</text>`,
  )
  const body = panels.flatMap((panel, i) => draw(panel, names, i * width, width))
  return String(html`<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 ${panels.length * width} ${top + panelHeight + bottom}">
<title>${title}</title>
<style>${new Markup(style)}</style>
${[...legend, ...body]}
</svg>
`)
}
