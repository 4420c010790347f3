import type { ReceivedRun } from '../messages.js'
import { element } from './dom.js'
import { ExpertLoad } from './expert-load.js'
import { Cards, Comparison, flagsOf } from './numbers.js'
import { type Plot, plotsOfMany, plotsOfOne } from './plots.js'
import { Samples } from './samples.js'

/** Everything below the header: one run in detail, or several compared. */
export class View {
  #runs: readonly ReceivedRun[]
  readonly #plots: readonly Plot[]
  readonly #numbers: Cards | Comparison
  readonly #load = new ExpertLoad()
  readonly #samples = new Samples()
  readonly #select = element('select')

  constructor(root: HTMLElement, runs: readonly ReceivedRun[]) {
    this.#runs = runs
    const several = runs.length > 1
    this.#numbers = several ? new Comparison(runs) : new Cards()
    this.#plots = several ? plotsOfMany(runs) : plotsOfOne()
    const [large, small] = [true, false].map((wanted) =>
      this.#plots.filter(({ large }) => large === wanted).map(({ chart }) => chart.figure),
    )
    this.#select.append(...runs.map(({ about }) => element('option', '', about.name)))
    this.#select.addEventListener('change', () => this.update(this.#runs))
    const details = several ? element('label', 'choose', 'Expert load and samples of ', this.#select) : flagsOf(runs[0])
    root.replaceChildren(
      this.#numbers.section,
      ...large,
      element('div', 'small-charts', ...small),
      ...(several ? [details] : []),
      this.#load.section,
      this.#samples.section,
      ...(several ? [] : [details]),
    )
  }

  /** The same runs, as they are now. */
  update(runs: readonly ReceivedRun[]): void {
    this.#runs = runs
    this.#numbers.update(runs)
    for (const { chart, tables, levels } of this.#plots) chart.update(tables(runs), levels?.(runs))
    const part = runs[Math.max(0, this.#select.selectedIndex)]?.part
    if (!part) return
    this.#load.update(part)
    this.#samples.update(part)
  }
}
