import { html, Markup } from '../../cli/index.js'

const [width, height, left, right, top, bottom] = [640, 340, 70, 622, 60, 294]
const colors = ['#1b6f8f', '#b4541f', '#4f7d3a', '#7a4fa3']
const dark = ['#63bfe0', '#e8955a', '#9ccb84', '#c3a0ea']
const rules = (list: readonly string[]): string =>
  list.map((color, i) => `.s${i} { stroke: ${color} } circle.s${i} { fill: ${color}; stroke: none }`).join('\n')
const style = `text { font: 12px system-ui, sans-serif; fill: #6b7280 } .mid { text-anchor: middle } .end { text-anchor: end }
.grid { stroke: #888; stroke-opacity: 0.3 } path { fill: none; stroke-width: 2.25; stroke-linejoin: round }
${rules(colors)}
@media (prefers-color-scheme: dark) { text { fill: #9aa4b2 }
${rules(dark)} }`

export interface Line {
  name: string
  points: readonly (readonly [x: number, y: number])[]
}

/** Lines over ranks, both axes logarithmic: SVG that follows the reader's light or dark setting. */
export function lineChart(title: string, axis: string, lines: readonly Line[], tick: (y: number) => string): string {
  const all = lines.flatMap(({ points }) => points)
  const powers = all.map(([, y]) => Math.log10(y))
  const [low, high] = [Math.floor(Math.min(...powers)), Math.ceil(Math.max(...powers))]
  const most = Math.log2(Math.max(...all.map(([x]) => x)))
  const toX = (x: number) => (left + (Math.log2(x) / most) * (right - left)).toFixed(1)
  const toY = (y: number) => (bottom - ((Math.log10(y) - low) / (high - low)) * (bottom - top)).toFixed(1)
  const body = [
    ...Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i)).map(
      (y) =>
        html`<line class="grid" x1="${left}" x2="${right}" y1="${toY(y)}" y2="${toY(y)}"/><text class="end" dy="4" x="${left - 8}" y="${toY(y)}">${tick(y)}</text>`,
    ),
    ...Array.from({ length: most + 1 }, (_, i) => 2 ** i).map(
      (x) => html`<text class="mid" x="${toX(x)}" y="${bottom + 18}">${x}</text>`,
    ),
    html`<text class="mid" x="${(left + right) / 2}" y="${bottom + 38}">ranks</text>`,
    html`<text class="mid" transform="rotate(-90)" x="${-(top + bottom) / 2}" y="14">${axis}</text>`,
    ...lines.flatMap(({ name, points }, i) => {
      const places = points.map(([x, y]) => [toX(x), toY(y)])
      const [x, y] = [left + (i % 2) * 280, 14 + Math.floor(i / 2) * 20]
      return [
        html`<path class="s${i}" d="M${x} ${y}h20"/><text x="${x + 26}" y="${y + 4}">${name}</text>`,
        html`<path class="s${i}" d="M${places.map((place) => place.join(' ')).join('L')}"/>`,
        ...places.map(([x, y]) => html`<circle class="s${i}" cx="${x}" cy="${y}" r="3"/>`),
      ]
    }),
  ]
  return String(html`<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 ${width} ${height}">
<title>${title}</title>
<style>${new Markup(style)}</style>
${body}
</svg>
`)
}
