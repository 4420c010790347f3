import { duration, mean } from '../../numbers.js'
import type { Part, ReceivedRun, RunAbout } from '../messages.js'
import { element, integer, lossText, lossUnit, percent, rateText, swatch } from './dom.js'
import { colorOf } from './plots.js'

/** Entries that a recent mean is over. */
const recentEntries = 20

function recent(part: Part, index: 0 | 1 | 2 | 3): number | null {
  const values = part.entries.list.slice(-recentEntries).map((entry) => entry[index])
  const known = values.filter((value) => value !== undefined)
  return known.length > 0 ? mean(known) : null
}

const meanSpeed = ({ charactersPerStep }: RunAbout, { steps, seconds }: Part): number =>
  (charactersPerStep * steps) / seconds

/** The latest figures of one run. */
export class Cards {
  readonly section = element('section', 'cards')
  readonly #shown = new Map<string, readonly [value: HTMLElement, note: HTMLElement]>()

  constructor() {
    for (const name of ['held-out loss', 'training loss', 'throughput', 'learning rate', 'dropped', 'training time']) {
      const [value, note] = [element('strong', '', '–'), element('small')]
      const card = element('div', 'card', element('span', '', name), value, note)
      card.dataset.card = name
      this.section.append(card)
      this.#shown.set(name, [value, note])
    }
  }

  update([{ about, part }]: readonly ReceivedRun[]): void {
    if (!part) return
    const [training, dropped, rate, seconds] = ([0, 1, 2, 3] as const).map((index) => recent(part, index))
    const best = Object.entries(part.baselines).at(-1)
    const heldOut = part.evaluations.list.at(-1)
    this.#put(
      'held-out loss',
      heldOut && lossText(heldOut.loss),
      best ? `${lossUnit}; ${best[0]} ${lossText(best[1])}` : lossUnit,
    )
    this.#put('training loss', training !== null && lossText(training), `${lossUnit}, recent mean`)
    const speed = seconds ? about.charactersPerStep / seconds : meanSpeed(about, part)
    this.#put('throughput', Number.isFinite(speed) && integer(speed), 'characters per second')
    this.#put('learning rate', rate !== null && rateText(part.entries.list.at(-1)![2]!), 'of the last step')
    this.#put('dropped', dropped !== null && percent(dropped), 'of the tokens, recent mean')
    const left = (about.steps - part.steps) * (seconds ?? part.seconds / part.steps)
    const running = part.status.state === 'running' && left > 0
    this.#put(
      'training time',
      duration(part.seconds),
      running ? `about ${duration(left)} left` : `for ${integer(part.steps)} steps`,
    )
  }

  #put(name: string, value: string | false | undefined, note: string): void {
    const [shown, small] = this.#shown.get(name)!
    shown.textContent = value || '–'
    small.textContent = note
  }
}

/** A table of several runs: results, and the flags that differ. */
export class Comparison {
  readonly section: HTMLElement
  readonly #results: HTMLElement[][]

  constructor(runs: readonly ReceivedRun[]) {
    const row = (name: string, cells: readonly (Node | string)[]): HTMLElement =>
      element('tr', '', element('th', '', name), ...cells.map((cell) => element('td', '', cell)))
    const names = runs.map(({ about }, i) => element('th', '', swatch(colorOf(i)), about.name))
    this.#results = results.map(() => runs.map(() => element('span', '', '–')))
    const flags = [...new Set(runs.flatMap(({ about }) => Object.keys(about.flags)))]
    const valuesOf = (flag: string): string[] => runs.map(({ about }) => about.flags[flag] ?? '–')
    const texts = runs.map(({ about }) => about.text)
    const differing = flags.filter((flag) => new Set(valuesOf(flag)).size > 1)
    const table = element(
      'table',
      'comparison',
      element('thead', '', element('tr', '', element('th'), ...names)),
      element(
        'tbody',
        '',
        ...results.map(({ name }, i) => row(name, this.#results[i])),
        ...(new Set(texts).size > 1 ? [row('text', texts)] : []),
        ...differing.map((flag) => row(`--${flag}`, valuesOf(flag))),
      ),
    )
    const note = differing.length > 0 ? 'Below the results: the flags that differ.' : 'No flag differs.'
    this.section = element('section', 'wide', table, element('p', 'caption', note))
  }

  update(runs: readonly ReceivedRun[]): void {
    for (const [row, { value }] of results.entries()) {
      for (const [i, run] of runs.entries()) this.#results[row][i].textContent = run.part ? value(run, run.part) : '–'
    }
    const losses = runs.map(({ part }) => part?.evaluations.list.at(-1)?.loss ?? Number.POSITIVE_INFINITY)
    const best = Math.min(...losses)
    const comparable = Number.isFinite(best) && new Set(runs.map(({ about }) => about.text)).size === 1
    for (const [i, cell] of this.#results[0].entries()) cell.classList.toggle('best', comparable && losses[i] === best)
  }
}

const results: readonly { name: string; value(run: ReceivedRun, part: Part): string }[] = [
  {
    name: `held-out loss, ${lossUnit}`,
    value: (_, { evaluations }) => (evaluations.list.length > 0 ? lossText(evaluations.list.at(-1)!.loss) : '–'),
  },
  { name: 'steps', value: ({ about }, { steps }) => `${integer(steps)} of ${integer(about.steps)}` },
  { name: 'training time', value: (_, { seconds }) => duration(seconds) },
  {
    name: 'characters per second',
    value: ({ about }, part) => (part.steps > 0 ? integer(meanSpeed(about, part)) : '–'),
  },
  { name: 'parameters', value: (_, { parameters }) => (parameters === undefined ? '–' : integer(parameters)) },
]

/** All flags of a run, folded. */
export function flagsOf({ about }: ReceivedRun): HTMLElement {
  const rows = Object.entries(about.flags).map(([name, value]) =>
    element('tr', '', element('th', '', `--${name}`), element('td', '', value)),
  )
  return element('details', '', element('summary', '', 'Flags of the run'), element('table', '', ...rows))
}
