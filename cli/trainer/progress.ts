import { duration, mean } from '../numbers.js'
import { jsonLine, note } from '../output.js'
import { visible, visibleName } from '../visible.js'

/** An event of a run. */
export type RunEvent =
  | {
      /** Of a text that takes more than a second. */
      event: 'prepare'
      stage: string
      done: number
      total: number
    }
  | {
      event: 'start'
      text: string
      training: number
      heldOut: number
      vocabulary: number
      parameters: number
      charactersPerStep: number
      /** Held-out loss of the n-gram baselines, nats per character. */
      counts: Record<string, number>
    }
  | { event: 'ui'; url: string }
  | { event: 'resume'; step: number }
  | {
      event: 'step'
      step: number
      steps: number
      loss: number
      dropped: number
      learningRate: number
      /** [layer][expert]: fraction of the tokens whose top-1 expert it is. */
      load: readonly (readonly number[])[]
    }
  | { event: 'evaluation'; step: number; loss: number; sample: string }
  | { event: 'end'; step: number; steps: number; out: string; text: string }

export type Report = (event: RunEvent) => void

/** A line of JSON per event. */
export const jsonProgress = (): Report => jsonLine

/** A terminal shows one updated line; other outputs, such as log files, get a line every few seconds. */
export function textProgress(out: Pick<NodeJS.WriteStream, 'isTTY' | 'columns' | 'write'> = process.stdout): Report {
  const pace = new Pace(out.isTTY ? 100 : 5000)
  const say = (text: string): void => {
    out.write(`${out.isTTY ? '\r\x1b[2K' : ''}${visible(text)}\n`)
    pace.pause()
  }
  const recent = { loss: [] as number[], dropped: [] as number[] }
  let charactersPerStep = 0
  let hasPage = false
  let prepared = Number.NEGATIVE_INFINITY
  return (event) => {
    switch (event.event) {
      case 'prepare': {
        const line = `${event.stage}: ${Math.floor((100 * event.done) / event.total)} %`
        if (out.isTTY) out.write(`\r\x1b[2K${line}`)
        else if (performance.now() - prepared >= 5000) {
          prepared = performance.now()
          out.write(`${line}\n`)
        }
        return
      }
      case 'start':
        charactersPerStep = event.charactersPerStep
        return say(introduction(event))
      case 'ui':
        hasPage = true
        return note(`this run in a browser: ${event.url}`)
      case 'resume':
        return say(`resumed at step ${event.step}`)
      case 'evaluation':
        return say(`step ${event.step}  held-out loss ${event.loss.toFixed(3)}`)
      case 'step': {
        for (const name of ['loss', 'dropped'] as const) recent[name] = [...recent[name].slice(-19), event[name]]
        if (!pace.next(event.step === event.steps)) return
        const smooth = { ...event, loss: mean(recent.loss), dropped: mean(recent.dropped) }
        const width = out.isTTY ? (out.columns || 80) - 1 : Number.POSITIVE_INFINITY // some terminals report no width
        const line = progressLine(smooth, charactersPerStep, pace.seconds, width)
        out.write(out.isTTY ? `\r\x1b[2K${line}` : `${line}\n`)
        return
      }
      case 'end': {
        const { step, steps, text } = event
        const out = visibleName(event.out)
        if (text !== '') say(`\n${text}\n`)
        const next = step < steps ? `; continue with --resume --out ${out}` : ''
        const again = hasPage ? `; st-moe show ${out} opens the page again` : ''
        return say(`step ${step} of ${steps}, report and checkpoint in ${out}${next}${again}`)
      }
    }
  }
}

/** Measures the time per step, and decides when to print. */
class Pace {
  /** Time per step, as a moving average. */
  seconds = 0
  readonly #interval: number
  #shown = 0
  #last: number | null = null

  constructor(interval: number) {
    this.#interval = interval
  }

  /** Called after each step; returns whether to print it. */
  next(isLast: boolean): boolean {
    const now = performance.now()
    if (this.#last !== null) {
      const seconds = (now - this.#last) / 1000
      this.seconds = this.seconds === 0 ? seconds : 0.95 * this.seconds + 0.05 * seconds
    }
    this.#last = now
    if (this.seconds === 0 || (now - this.#shown < this.#interval && !isLast)) return false
    this.#shown = now
    return true
  }

  /** Excludes the time until the next step. */
  pause(): void {
    this.#last = null
  }
}

function introduction({ text, training, heldOut, vocabulary, parameters, counts }: RunEvent & { event: 'start' }) {
  const number = (value: number): string => value.toLocaleString('en')
  const losses = Object.entries(counts).map(([name, loss]) => `${name} ${loss.toFixed(3)}`)
  return (
    `${visibleName(text)}: ${number(training)} training characters, ${number(heldOut)} held out, ` +
    `vocabulary of ${vocabulary}; ${number(parameters)} parameters\n` +
    `held-out loss of n-gram baselines, in nats per character: ${losses.join(', ')}`
  )
}

/** At most `width` characters: drops the less important parts if necessary; the bar fills the rest. */
function progressLine(
  { step, steps, loss, dropped }: RunEvent & { event: 'step' },
  charactersPerStep: number,
  pace: number,
  width: number,
): string {
  const parts = new Map([
    ['count', `${step}/${steps}`],
    ['loss', `loss ${loss.toFixed(3)}`],
    ['pace', `${Math.round(charactersPerStep / pace).toLocaleString('en')} char/s`],
    ['dropped', `${(dropped * 100).toFixed(1)} % dropped`],
    ['left', `${duration((steps - step) * pace)} left`],
  ])
  const line = (): string => [...parts.values()].join('  ')
  for (const name of ['dropped', 'pace', 'left', 'loss']) if (line().length > width) parts.delete(name)
  const room = Math.min(20, width - line().length - 1)
  const done = Math.floor((step / steps) * room)
  const bar = room < 8 ? '' : `${'█'.repeat(done)}${'░'.repeat(room - done)} `
  return (bar + line()).slice(0, width)
}
