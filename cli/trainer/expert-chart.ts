import { html, type Markup } from '../markup.js'
import { bins, chartWidth, svg, xAxis } from './chart.js'
import type { History } from './history.js'

const left = 64
const right = 136
const row = 14
const gap = 34
const top = 62
const bottom = 48

export interface ExpertLoad {
  history: Pick<History, 'load' | 'stride' | 'steps'>
  /** [layer][expert]: the tokens that the router prefers to send to it. */
  preferred: readonly string[][][]
  steps: number
}

/**
 * A heat map per layer with one row per expert and time to the right. The color is its share of the top-1 assignments,
 * relative to 1/E. At the end of a row: the last share, and the preferred tokens.
 */
export function expertLoadChart({ history, preferred, steps }: ExpertLoad): Markup {
  const { load } = history
  const layers = load[0]?.length ?? 0
  const experts = load[0]?.[0]?.length ?? 0
  const height = top + layers * (experts * row + gap) - gap + bottom
  const edge = chartWidth - right
  const toX = (step: number): number => left + (step / steps) * (edge - left)
  const body = [...legend(), ...xAxis({ label: 'training steps', max: steps }, height, toX)]
  for (let layer = 0; layer < layers; layer++) {
    const y0 = top + layer * (experts * row + gap)
    body.push(html`<text class="ink strong" x="${left}" y="${y0 - 8}">layer ${layer + 1}</text>`)
    for (let expert = 0; expert < experts; expert++) {
      const y = y0 + expert * row
      const shares = binnedShares(history, layer, expert)
      const last = `${((shares.at(-1)?.share ?? 0) * 100).toFixed(0)} %`
      const preferences = fitting(preferred[layer]?.[expert] ?? [])
      body.push(
        ...cells(shares, experts, y, toX),
        html`<text class="end small" x="${left - 8}" y="${y + 11}">${expert + 1}</text>`,
        html`<text class="end small" x="${edge + 38}" y="${y + 11}">${last}</text>`,
        html`<text class="ink small" x="${edge + 50}" y="${y + 11}">${preferences}</text>`,
      )
    }
  }
  return svg('Expert load over time', height, body)
}

interface Interval {
  from: number
  to: number
  share: number
}

function binnedShares({ load, stride, steps }: ExpertLoad['history'], layer: number, expert: number): Interval[] {
  return bins(load.length, 120).map(([from, to]) => {
    let sum = 0
    for (let i = from; i < to; i++) sum += load[i][layer][expert]
    return { from: from * stride, to: Math.min(to * stride, steps), share: sum / (to - from) }
  })
}

/** Level 4 is the fair share 1/E; levels are a quarter of it apart. */
const levelOf = (share: number, experts: number): number =>
  Math.max(0, Math.min(8, Math.round(4 + (share * experts - 1) * 4)))

/** The first tokens that fit beside a row. */
function fitting(tokens: readonly string[]): string {
  let text = ''
  for (const token of tokens) {
    if (text.length + token.length > 22) break
    text += ` ${token}`
  }
  return text.slice(1)
}

/** Rectangles of one row; neighbors of one level are merged. */
function cells(shares: readonly Interval[], experts: number, y: number, toX: (step: number) => number): Markup[] {
  const runs: { from: number; to: number; level: number }[] = []
  for (const { from, to, share } of shares) {
    const level = levelOf(share, experts)
    const last = runs.at(-1)
    if (last?.level === level) last.to = to
    else runs.push({ from, to, level })
  }
  return runs.map(({ from, to, level }) => {
    const [x0, x1] = [toX(from), toX(to)]
    return html`<rect class="l${level}" x="${x0.toFixed(1)}" y="${y}" width="${(x1 - x0 + 0.3).toFixed(1)}" height="${row - 1}"/>`
  })
}

function legend(): Markup[] {
  const width = 22
  const x0 = chartWidth - right - 9 * width
  const label = (level: number, text: string): Markup =>
    html`<text class="mid small" x="${x0 + (level + 0.5) * width}" y="32">${text}</text>`
  return [
    html`<text x="${left}" y="17">share of the tokens, 1 = even split</text>`,
    ...Array.from(
      { length: 9 },
      (_, i) => html`<rect class="l${i}" x="${x0 + i * width}" y="6" width="${width}" height="14"/>`,
    ),
    label(0, '0'),
    label(4, '1'),
    label(8, '≥ 2'),
    html`<text class="small" x="${chartWidth - right + 50}" y="17">prefers</text>`,
  ]
}
