export interface ProgressState {
  step: number
  steps: number
  loss: number
  dropped: number
  charactersPerStep: number
}

/** One line that is rewritten on a terminal; elsewhere, such as in a log file, a line every few seconds. */
export class Progress {
  readonly #out: NodeJS.WriteStream
  readonly #interval: number
  #shown = 0
  #last: number | null = null
  /** Seconds a step, a mean that forgets. */
  #pace: number | null = null

  constructor(out: NodeJS.WriteStream = process.stdout) {
    this.#out = out
    this.#interval = out.isTTY ? 100 : 5000
  }

  update(state: ProgressState): void {
    const now = performance.now()
    if (this.#last !== null) {
      const seconds = (now - this.#last) / 1000
      this.#pace = this.#pace === null ? seconds : 0.95 * this.#pace + 0.05 * seconds
    }
    this.#last = now
    if (this.#pace === null || (now - this.#shown < this.#interval && state.step < state.steps)) return
    this.#shown = now
    const line = progressLine(state, this.#pace)
    if (this.#out.isTTY) this.#out.write(`\r\x1b[2K${line.slice(0, this.#out.columns - 1)}`)
    else this.#out.write(`${line}\n`)
  }

  /** Prints above the progress line. The time that led here is not the pace of training. */
  say(text: string): void {
    this.#out.write(this.#out.isTTY ? `\r\x1b[2K${text}\n` : `${text}\n`)
    this.#last = null
  }
}

function progressLine({ step, steps, loss, dropped, charactersPerStep }: ProgressState, pace: number): string {
  const width = 20
  const done = Math.floor((step / steps) * width)
  return [
    `${'█'.repeat(done)}${'░'.repeat(width - done)} ${step}/${steps}`,
    `loss ${loss.toFixed(3)}`,
    `${Math.round(charactersPerStep / pace).toLocaleString('en')} char/s`,
    `${(dropped * 100).toFixed(1)} % dropped`,
    `${duration((steps - step) * pace)} left`,
  ].join('  ')
}

function duration(seconds: number): string {
  const whole = Math.round(seconds)
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`
}
