import type { Evaluation } from '../../trainer/evaluation.js'
import type { Part } from '../messages.js'
import { element, integer, lossText } from './dom.js'

/** What the model wrote at an evaluation: the latest, or one that the reader chooses. */
export class Samples {
  readonly section: HTMLElement
  readonly #slider = element('input')
  readonly #choose = element('label', 'choose', 'Earlier samples ', this.#slider)
  readonly #article = element('article')
  #part: Part | null = null

  constructor() {
    this.#slider.type = 'range'
    this.#slider.min = '0'
    this.#slider.addEventListener('input', () => this.#show())
    this.section = element(
      'section',
      '',
      element('h2', '', 'Samples'),
      element('p', 'caption', 'Continuations of the beginning of a held-out paragraph, sampled at temperature 0.7.'),
      this.#choose,
      this.#article,
    )
  }

  update(part: Part): void {
    this.#part = part
    const latest = this.#slider.value === this.#slider.max
    const { length } = part.evaluations.list
    this.section.hidden = length === 0
    this.#choose.hidden = length < 2
    this.#slider.max = String(Math.max(0, length - 1))
    if (latest) this.#slider.value = this.#slider.max
    this.#show()
  }

  #show(): void {
    const { evaluations, prompt } = this.#part!
    const evaluation: Evaluation | undefined = evaluations.list[Number(this.#slider.value)]
    if (!evaluation) return
    this.#article.replaceChildren(
      element(
        'h3',
        '',
        `step ${integer(evaluation.step)}`,
        element('span', '', `held-out loss ${lossText(evaluation.loss)}`),
      ),
      element('blockquote', '', element('b', '', prompt), evaluation.sample),
    )
  }
}
