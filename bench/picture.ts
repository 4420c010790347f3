import { html, Markup } from '../cli/index.js'
import { find, type Report } from './report.js'
import { both } from './targets.js'

/** The picture of docs/performance.md: SVG that follows the reader's light or dark setting. */

const [width, height, left, right, top, bottom] = [640, 340, 62, 622, 44, 294]
const style = `text { font: 12px system-ui, sans-serif; fill: #6b7280 } .mid { text-anchor: middle } .end { text-anchor: end }
.grid { stroke: #888; stroke-opacity: 0.3 } path { fill: none; stroke-width: 2.25; stroke-linejoin: round }
.s0 { stroke: #1b6f8f } .s1 { stroke: #86b1c3 } .s2 { stroke: #b4541f } circle { stroke: none }
circle.s0 { fill: #1b6f8f } circle.s1 { fill: #86b1c3 } circle.s2 { fill: #b4541f }
@media (prefers-color-scheme: dark) { text { fill: #9aa4b2 } .s0 { stroke: #63bfe0 } .s1 { stroke: #35657a } .s2 { stroke: #e8955a }
circle.s0 { fill: #63bfe0 } circle.s1 { fill: #35657a } circle.s2 { fill: #e8955a } }`

/** From one range to another, logarithmically. */
const scale = (first: number, last: number, from: number, to: number) => (value: number) =>
  (from + (Math.log(value / first) / Math.log(last / first)) * (to - from)).toFixed(1)

const time = (seconds: number): string =>
  seconds < 1 ? `${Number((seconds * 1e3).toPrecision(3))} ms` : `${seconds} s`

/** A training step of the layer over the length of a sequence, vs. PyTorch. */
export function growthChart(report: Report): string {
  const lines = ['st-moe', 'index-pytorch', 'st-moe-pytorch'].flatMap((name) => {
    const found = find(report, `${name}/growth/${both}`).sort((a, b) => Number(a.params.N) - Number(b.params.N))
    const points = found.map(({ params, wallMs }) => ({ N: Number(params.N), seconds: wallMs.median / 1e3 }))
    return points.length > 1 ? [{ name, points }] : []
  })
  if (lines.length === 0) throw new Error('the report has no growth to draw: npm run bench -- --suite growth')
  const powers = lines.flatMap(({ points }) => points.map(({ seconds }) => Math.log10(seconds)))
  const [low, high] = [Math.floor(Math.min(...powers)), Math.ceil(Math.max(...powers))]
  const xTicks = lines[0].points.map(({ N }) => N)
  const yTicks = Array.from({ length: Math.max(1, high - low) + 1 }, (_, i) => 10 ** (low + i))
  const toX = scale(xTicks[0], xTicks.at(-1)!, left, right)
  const toY = scale(yTicks[0], yTicks.at(-1)!, bottom, top)
  const body = [
    ...yTicks.map(
      (tick) =>
        html`<line class="grid" x1="${left}" x2="${right}" y1="${toY(tick)}" y2="${toY(tick)}"/><text class="end" dy="4" x="${left - 8}" y="${toY(tick)}">${time(tick)}</text>`,
    ),
    ...xTicks.map((tick) => html`<text class="mid" x="${toX(tick)}" y="${bottom + 18}">${tick}</text>`),
    html`<text class="mid" x="${(left + right) / 2}" y="${bottom + 38}">tokens per sequence (N)</text>`,
    html`<text class="mid" transform="rotate(-90)" x="${-(top + bottom) / 2}" y="14">forward + backward</text>`,
    ...lines.flatMap(({ name, points }, i) => {
      const places = points.map(({ N, seconds }) => [toX(N), toY(seconds)])
      return [
        html`<path class="s${i}" d="M${left + i * 170} 18h20"/><text x="${left + 26 + i * 170}" y="22">${name}</text>`,
        html`<path class="s${i}" d="M${places.map((place) => place.join(' ')).join('L')}"/>`,
        ...places.map(([x, y]) => html`<circle class="s${i}" cx="${x}" cy="${y}" r="3.5"/>`),
      ]
    }),
  ]
  return String(html`<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 ${width} ${height}">
<title>Time of a training step of the layer over the length of a sequence</title>
<style>${new Markup(style)}</style>
${body}
</svg>
`)
}
