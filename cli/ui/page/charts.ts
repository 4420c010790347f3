import { cssColor, darkSetting, element, integer, swatch } from './dom.js'

/** A curve over the steps; its color is a custom property of the style sheet. */
export interface Curve {
  name: string
  color: string
  width?: number
  /** Marks each point. */
  points?: boolean
  dash?: number[]
}

export interface ChartOptions {
  title: string
  /** Of the vertical axis, with its unit. */
  label: string
  height: number
  /** The width of the labels of the vertical axis. */
  axis?: number
  format: (value: number) => string
  /** Formats the labels of the vertical axis, if they are not plain numbers. */
  tick?: (value: number) => string
  /** Whether the vertical axis starts at 0. */
  fromZero?: boolean
  curves: readonly Curve[]
}

/** Points of a curve. */
export type Table = [steps: number[], values: number[]]
/** Horizontal reference lines by name. */
export type Levels = Record<string, number>

const font = "12px system-ui, -apple-system, 'Segoe UI', Inter, 'DejaVu Sans', sans-serif"

/** A line chart whose legend shows the values at the cursor, or the latest. Dragging zooms, a double click zooms out. */
export class Chart {
  readonly figure: HTMLElement
  readonly #options: ChartOptions
  readonly #plot: uPlot
  readonly #step = element('span', 'at')
  readonly #values: HTMLElement[]
  #levels: Levels = {}
  /** Values above it are cut off, unless zoomed in. */
  #cap = Number.POSITIVE_INFINITY

  constructor(options: ChartOptions) {
    this.#options = options
    const { title, curves, height } = options
    this.#values = curves.map(() => element('b'))
    const legend = element(
      'div',
      'legend',
      this.#step,
      ...curves.map(({ name, color }, i) =>
        element('span', 'key', ...(curves.length > 1 ? [swatch(color), name] : []), this.#values[i]),
      ),
    )
    const host = element('div', 'plot')
    host.style.minHeight = `${height}px`
    this.figure = element('figure', 'chart-figure', element('h2', '', title), legend, host)
    this.#plot = new uPlot(this.#plotOptions(), [[], ...curves.map(() => [])], host)
    new ResizeObserver(() => {
      if (host.clientWidth > 0) this.#plot.setSize({ width: host.clientWidth, height })
    }).observe(host)
    darkSetting.addEventListener('change', () => this.#plot.redraw(false))
  }

  /** A table per curve. */
  update(tables: readonly Table[], levels: Levels = {}): void {
    this.#levels = levels
    const highest = tables.map(([, values]) => quantile(values, 0.98))
    this.#cap = Math.max(...highest, ...Object.values(levels))
    const zoomed = this.#zoomed
    const data = uPlot.join(tables.map(([steps, values]) => [steps, values]))
    this.#plot.setData(data, !zoomed)
    if (zoomed) this.#plot.redraw()
    this.#showValues()
  }

  get #zoomed(): boolean {
    const { scales, data } = this.#plot
    const { min, max } = scales.x
    const steps = data[0]
    return steps.length > 1 && min != null && max != null && (min > steps[0] || max < steps[steps.length - 1])
  }

  #plotOptions(): uPlot.Options {
    const { curves, height, label, tick, axis = 56 } = this.#options
    const grid = { stroke: () => cssColor('--grid'), width: 1 }
    const stroke = (): string => cssColor('--muted')
    const axisStyle = { stroke, grid, ticks: { show: false }, font, labelFont: font, labelGap: 2 }
    return {
      width: 300,
      height,
      legend: { show: false },
      cursor: { sync: { key: 'steps' }, drag: { x: true, y: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: (_, min, max) => atLeast(min, max, 1) },
        y: { range: (_, min, max) => this.#range(min, max) },
      },
      axes: [
        { ...axisStyle, label: 'training steps', size: 26, labelSize: 18, values: (_, steps) => steps.map(stepLabel) },
        {
          ...axisStyle,
          label,
          size: axis,
          labelSize: 20,
          ...(tick && { values: (_, values) => values.map(tick) }),
        },
      ],
      series: [
        {},
        ...curves.map(({ name, color, width = 1.5, points = false, dash }) => ({
          label: name,
          stroke: () => cssColor(color),
          width,
          spanGaps: true,
          ...(dash && { dash }),
          points: { show: points, size: 6, fill: () => cssColor(color) },
        })),
      ],
      hooks: {
        drawAxes: [() => this.#drawLevels()],
        draw: [() => this.#nameLevels()],
        setCursor: [() => this.#showValues()],
      },
    }
  }

  #range(min: number | null, max: number | null): uPlot.Range.MinMax {
    const levels = Object.values(this.#levels)
    const top = Math.max(this.#zoomed ? (max ?? 1) : Math.min(max ?? 1, this.#cap), ...levels)
    if (this.#options.fromZero) return [0, top > 0 ? top * 1.08 : 1]
    const bottom = Math.min(min ?? 0, ...levels)
    const margin = (top - bottom || 1) * 0.06
    return [bottom - margin * (levels.length > 0 ? 1.5 : 1), top + margin]
  }

  #showValues(): void {
    const { data, cursor } = this.#plot
    const steps = data[0]
    const at = cursor.idx ?? steps.length - 1
    this.#step.textContent = at >= 0 ? `step ${integer(steps[at])}` : ''
    for (const [i, shown] of this.#values.entries()) {
      const values = data[i + 1] ?? []
      let last = at
      while (last >= 0 && values[last] == null) last--
      shown.textContent = last >= 0 ? this.#options.format(values[last]!) : '–'
    }
  }

  /** Below the curves. */
  #drawLevels(): void {
    const { ctx, bbox } = this.#plot
    ctx.save()
    ctx.strokeStyle = cssColor('--rust')
    ctx.lineWidth = devicePixelRatio
    ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio])
    for (const value of Object.values(this.#levels)) {
      const y = this.#plot.valToPos(value, 'y', true)
      ctx.beginPath()
      ctx.moveTo(bbox.left, y)
      ctx.lineTo(bbox.left + bbox.width, y)
      ctx.stroke()
    }
    ctx.restore()
  }

  /** Above the curves, which end near the lowest: its name is below its line. A name that would cover another is left out. */
  #nameLevels(): void {
    const { ctx, bbox } = this.#plot
    const ratio = devicePixelRatio
    ctx.save()
    ctx.fillStyle = cssColor('--rust')
    ctx.font = font.replace('12px', `${12 * ratio}px`)
    ctx.textAlign = 'right'
    let free = Number.POSITIVE_INFINITY
    for (const [i, [name, value]] of Object.entries(this.#levels)
      .sort(([, a], [, b]) => a - b)
      .entries()) {
      const y = this.#plot.valToPos(value, 'y', true)
      if (y > free - 15 * ratio) continue
      ctx.textBaseline = i === 0 ? 'top' : 'bottom'
      const gap = (i === 0 ? 3 : -2) * ratio
      ctx.fillText(`${name} ${this.#options.format(value)}`, bbox.left + bbox.width - 4 * ratio, y + gap)
      free = y
    }
    ctx.restore()
  }
}

const stepLabel = (step: number): string => (Number.isInteger(step) ? integer(step) : '')

function atLeast(min: number | null, max: number | null, width: number): uPlot.Range.MinMax {
  if (min === null || max === null) return [0, width]
  return max - min < width ? [min, min + width] : [min, max]
}

function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.ceil(sorted.length * part) - 1] ?? 0
}
