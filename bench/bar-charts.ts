import { type Bar, barChart } from './bar-chart.js'
import { find, type Report } from './report.js'

/** The picture of docs/language-models.md: characters per second of the demo's model, on all threads. */
export function generationChart(report: Report): string {
  const all = [...find(report, 'whole-context/generate'), ...find(report, 'st-moe/generate')]
  const threads = Math.max(...all.map(({ params }) => Number(params.threads)))
  const found = all.filter(({ params }) => params.threads === threads)
  const speeds = found.map(({ wallMs }) => 1e3 / wallMs.median)
  const bars = found.map(({ name, params }, i): Bar => {
    const factor = i === 0 ? '' : `, ${(speeds[i] / speeds[0]).toFixed(1)}×`
    return {
      label: name.startsWith('whole') ? 'whole context each time' : `cached, ${params.texts} at once`,
      value: speeds[i],
      text: `${Math.round(speeds[i])}${factor}`,
    }
  })
  const title = 'Characters per second that the model of the demo generates'
  return barChart(title, `characters per second, ${threads} threads`, bars)
}

/** The picture of docs/async.md: how long the event loop waits while the demo's model trains. */
export function serverChart(report: Report): string {
  const bars = find(report, 'st-moe/server/delay').map(({ params, wallMs: { median } }) => ({
    label: `${params.training} steps`,
    value: median,
    text: `${median.toFixed(median < 100 ? 1 : 0)} ms`,
  }))
  return barChart('How long the event loop waits', 'delay of the event loop, 99th percentile', bars)
}
