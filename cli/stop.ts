import { constants } from 'node:os'
import { note, onClosedPipe } from './output.js'

/** Milliseconds. One key press may arrive twice, from the terminal and forwarded by npm. */
const sameKeyPress = 500

/** Ctrl-C, a stopped service or container, and a closed terminal. */
const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Whether a long command should stop early: finish the current step, save and exit. */
export class Stop {
  #signal: (typeof signals)[number] | null = null
  #closed = false
  #wake = (): void => {}

  /**
   * From now on the first signal requests a stop, a second one ends the process at once. `doing`: what happens first.
   */
  constructor(doing?: string) {
    const interrupt = (signal: NodeJS.Signals): void => {
      if (this.#signal !== null) return
      this.#signal = signal as (typeof signals)[number]
      this.#wake()
      const again = signal === 'SIGINT' ? 'press Ctrl-C again to stop at once' : 'a second signal stops at once'
      if (doing) note(`${doing}; ${again}`)
      setTimeout(() => {
        for (const name of signals) process.removeListener(name, interrupt)
      }, sameKeyPress).unref()
    }
    for (const name of signals) process.on(name, interrupt)
    onClosedPipe(() => {
      this.#closed = true
      this.#wake()
    })
  }

  readonly wanted = (): boolean => this.#signal !== null || this.#closed

  /** Resolves when it is wanted. */
  requested(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve
      if (this.wanted()) resolve()
    })
  }

  /** 128 plus the signal number, as shells report it. */
  get exitCode(): number {
    return this.#signal === null ? 0 : 128 + constants.signals[this.#signal]
  }
}
