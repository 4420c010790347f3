import type { Part } from '../messages.js'
import { cssColor, darkSetting, element, integer, percent } from './dom.js'

/** A heat map per layer: a row per expert, time to the right, and an even share in the neutral color. */
export class ExpertLoad {
  readonly section: HTMLElement
  readonly #layers = element('div', 'layers')
  #maps: LayerMap[] = []
  #part: Part | null = null

  constructor() {
    const scale = element('span', 'scale', ...['0', 'even', '≥ 2 × even'].map((text) => element('span', '', text)))
    const legend = element('div', 'legend', 'share of the tokens', scale)
    this.section = element(
      'section',
      '',
      element('h2', '', 'Expert load'),
      legend,
      this.#layers,
      element('p', 'caption', 'Each row is an expert, with its latest share of the top-1 assignments on the right.'),
    )
    darkSetting.addEventListener('change', () => this.#draw())
  }

  update(part: Part): void {
    this.#part = part
    const layers = part.columns.list[0] ?? []
    if (this.#maps.length !== layers.length || this.#maps.some(({ experts }, i) => experts !== layers[i].length)) {
      this.#maps = layers.map((experts, i) => new LayerMap(i + 1, experts.length))
      this.#layers.style.setProperty('--columns', String(layers.length % 3 === 0 ? 3 : Math.min(2, layers.length)))
      this.#layers.replaceChildren(...this.#maps.map(({ figure }) => figure))
    }
    this.#draw()
  }

  #draw(): void {
    if (!this.#part) return
    const colors = levelColors()
    for (const [i, map] of this.#maps.entries()) map.draw(this.#part, i, colors)
  }
}

type Color = readonly [red: number, green: number, blue: number]

/** The style sheet's nine colors, from no share to twice an even one. */
const levelColors = (): Color[] =>
  Array.from({ length: 9 }, (_, i) => {
    const hex = Number.parseInt(cssColor(`--l${i}`).slice(1), 16)
    return [hex >> 16, (hex >> 8) & 255, hex & 255]
  })

/** Between the two nearest colors. `relative`: 1 is an even share. */
function colorOf(relative: number, colors: readonly Color[]): Color {
  const level = Math.min(8, relative * 4)
  const low = Math.min(7, Math.floor(level))
  const part = level - low
  const mix = (i: number): number => Math.round(colors[low][i] * (1 - part) + colors[low + 1][i] * part)
  return [mix(0), mix(1), mix(2)]
}

class LayerMap {
  readonly figure: HTMLElement
  readonly experts: number
  readonly #layer: number
  readonly #canvas = element('canvas')
  readonly #readout = element('span', 'readout')
  readonly #shares: HTMLElement[]
  readonly #end = element('span')
  #part: Part | null = null
  #cursor: readonly [column: number, expert: number] | null = null

  constructor(layer: number, experts: number) {
    this.#layer = layer
    this.experts = experts
    const height = Math.max(2, Math.min(18, 640 / experts))
    const labelled = height >= 13
    const column = (className: string, cells: HTMLElement[]): HTMLElement => {
      const made = element('div', `rows ${className}`, ...(labelled ? cells : []))
      made.style.gridAutoRows = `${height}px`
      return made
    }
    this.#shares = Array.from({ length: experts }, () => element('span'))
    const numbers = this.#shares.map((_, i) => element('span', '', String(i + 1)))
    const map = element('div', 'map', this.#canvas)
    map.style.height = `${height * experts}px`
    map.style.setProperty('--row', `${height}px`)
    this.#canvas.addEventListener('pointermove', (event) => this.#point(event))
    this.#canvas.addEventListener('pointerleave', () => this.#point(null))
    this.figure = element(
      'figure',
      'layer',
      element('h3', '', `layer ${layer}`, this.#readout),
      element('div', 'heat', column('numbers', numbers), map, column('shares', this.#shares)),
      element('div', 'steps', element('span', '', '0'), element('span', '', 'training steps'), this.#end),
    )
  }

  draw(part: Part, layer: number, colors: readonly Color[]): void {
    this.#part = part
    const columns = part.columns.list
    const canvas = this.#canvas
    canvas.width = columns.length
    canvas.height = this.experts
    const image = new ImageData(columns.length, this.experts)
    for (const [x, column] of columns.entries()) {
      for (const [y, share] of column[layer].entries())
        image.data.set([...colorOf(share * this.experts, colors), 255], (y * columns.length + x) * 4)
    }
    canvas.getContext('2d')!.putImageData(image, 0, 0)
    const latest = columns.at(-1)![layer]
    for (const [expert, label] of this.#shares.entries()) label.textContent = percent(latest[expert], 0)
    this.#end.textContent = integer(part.steps)
    canvas.setAttribute('role', 'img')
    canvas.setAttribute('aria-label', `Expert load of layer ${this.#layer}`)
    this.#read()
  }

  #point(event: PointerEvent | null): void {
    const { columns } = this.#part ?? { columns: { list: [] } }
    if (event) {
      const { width, height } = this.#canvas.getBoundingClientRect()
      const at = (part: number, count: number): number => Math.max(0, Math.min(count - 1, Math.floor(part * count)))
      this.#cursor = [at(event.offsetX / width, columns.list.length), at(event.offsetY / height, this.experts)]
    } else this.#cursor = null
    this.#read()
  }

  #read(): void {
    if (!this.#part || !this.#cursor) {
      this.#readout.textContent = `even share ${percent(1 / this.experts)}`
      return
    }
    const { columns, columnStride, steps } = this.#part
    const [column, expert] = this.#cursor
    const share = columns.list[column][this.#layer - 1][expert]
    const [first, last] = [column * columnStride + 1, Math.min((column + 1) * columnStride, steps)]
    const when = first === last ? `step ${integer(first)}` : `steps ${integer(first)}–${integer(last)}`
    this.#readout.textContent = `expert ${expert + 1}, ${when}: ${percent(share)}`
  }
}
