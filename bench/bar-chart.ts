import { html, Markup } from '../cli/index.js'

const [width, left, right, row, top] = [640, 170, 540, 30, 30]
const style = `text { font: 12px system-ui, sans-serif; fill: #6b7280 } .end { text-anchor: end }
rect { fill: #1b6f8f } .s0 { fill: #b4541f }
@media (prefers-color-scheme: dark) { text { fill: #9aa4b2 } rect { fill: #63bfe0 } .s0 { fill: #e8955a } }`

export interface Bar {
  label: string
  value: number
  /** The value, beside its bar. */
  text: string
}

/** SVG that follows the reader's light or dark setting. The first bar is what the others are compared with. */
export function barChart(title: string, axis: string, bars: readonly Bar[]): string {
  const most = Math.max(...bars.map(({ value }) => value))
  const body = bars.map(({ label, value, text }, i) => {
    const [y, length] = [top + i * row, ((right - left) * value) / most]
    return html`<text class="end" x="${left - 10}" y="${y + 15}">${label}</text><rect class="s${i}" x="${left}" y="${y}" width="${length.toFixed(1)}" height="20"/><text x="${(left + length + 8).toFixed(1)}" y="${y + 15}">${text}</text>`
  })
  return String(html`<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 ${width} ${top + bars.length * row + 4}">
<title>${title}</title>
<style>${new Markup(style)}</style>
<text x="${left}" y="18">${axis}</text>
${body}
</svg>
`)
}
