import { chart, type Line, type Panel } from './chart.js'
import { find, type Report, ratioTo } from './report.js'

const step = 'forward+backward'

/** A training step of the layer over the length of a sequence, beside PyTorch. */
export function growthChart(report: Report): string {
  const lines = ['st-moe', 'index-pytorch', 'st-moe-pytorch'].map((name): Line => {
    const found = find(report, `${name}/growth/${step}`).sort((a, b) => Number(a.params.N) - Number(b.params.N))
    return { name, points: found.map(({ params, wallMs }) => [Number(params.N), wallMs.median / 1e3]) }
  })
  const drawn = lines.filter(({ points }) => points.length > 1)
  if (drawn.length === 0) throw new Error('the report has no growth to draw: npm run bench -- --suite growth')
  const values = drawn.flatMap(({ points }) => points.map(([, seconds]) => Math.log10(seconds)))
  const [low, high] = [Math.floor(Math.min(...values)), Math.ceil(Math.max(...values))]
  const panel: Panel = {
    x: { label: 'tokens in a sequence (N)', ticks: drawn[0].points.map(([N]) => N), format: String },
    y: {
      label: 'forward + backward',
      ticks: Array.from({ length: Math.max(1, high - low) + 1 }, (_, i) => 10 ** (low + i)),
      format: (seconds) => (seconds < 1 ? `${Number((seconds * 1e3).toPrecision(3))} ms` : `${seconds} s`),
      log: true,
    },
    lines: drawn,
  }
  return chart('Time of a training step of the layer over the length of a sequence', [panel], 640)
}

/** The sizes of the layer from which one at a time grows or shrinks. */
const seed = { N: 1024, E: 16, K: 2, D: 512 }
const letters = { N: 'tokens (N)', E: 'experts (E)', K: 'choices (K)', D: 'width (D)' }

/** Which share of the FMA peak a training step of the layer reaches, over each of its sizes. */
export function scalingChart(report: Report): string {
  const all = find(report, `scaling/${step}`)
  const threads = [...new Set(all.map(({ params }) => Number(params.threads)))]
  const panels = Object.entries(letters).flatMap(([size, label]): Panel[] => {
    const others = Object.entries(seed).filter(([other]) => other !== size)
    const here = all
      .filter(({ params }) => others.every(([other, value]) => params[other] === value))
      .sort((a, b) => Number(a.params[size]) - Number(b.params[size]))
    const ticks = [...new Set(here.map(({ params }) => Number(params[size])))]
    if (ticks.length < 2) return []
    const lines = threads.map((count) => ({
      name: `${count} thread${count === 1 ? '' : 's'}`,
      points: here
        .filter(({ params }) => params.threads === count)
        .map((result) => [Number(result.params[size]), ratioTo(result, 'fma', 'flops')!.wall.median] as const),
    }))
    const y = { label: 'of the FMA peak', ticks: [0, 0.2, 0.4, 0.6, 0.8, 1], format: String, log: false }
    return [{ x: { label, ticks, format: String }, y, lines }]
  })
  if (panels.length === 0) throw new Error('the report has no scaling to draw: npm run bench -- --suite native')
  return chart('Share of the FMA peak over the sizes of the layer', panels, 330)
}
