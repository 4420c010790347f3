import { constants } from 'node:os'
import { note, onClosedPipe } from './output.js'

/** A key press may arrive twice, from the terminal and passed on by npm; milliseconds between two of the user's. */
const sameKeyPress = 500

/** Ctrl-C, the end of a service or a container, and a closed terminal. */
const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Whether a long command should end early: finish what it is at, save, and go. */
export class Stop {
  #signal: (typeof signals)[number] | null = null
  #closed = false

  /** From now on the first signal asks for an end, and a second one ends the process at once. `doing`: what goes before. */
  constructor(doing?: string) {
    const interrupt = (signal: NodeJS.Signals): void => {
      if (this.#signal !== null) return
      this.#signal = signal as (typeof signals)[number]
      if (doing) note(`${doing}; ${signal === 'SIGINT' ? 'Ctrl-C again' : 'a second signal'} ends at once`)
      setTimeout(() => {
        for (const name of signals) process.removeListener(name, interrupt)
      }, sameKeyPress).unref()
    }
    for (const name of signals) process.on(name, interrupt)
    onClosedPipe(() => {
      this.#closed = true
    })
  }

  readonly wanted = (): boolean => this.#signal !== null || this.#closed

  /** 128 and the number of the signal, as shells have it. */
  get exitCode(): number {
    return this.#signal === null ? 0 : 128 + constants.signals[this.#signal]
  }
}
