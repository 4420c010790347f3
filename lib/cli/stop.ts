import { onClosedPipe } from './output.js'

/** A key press may arrive twice, from the terminal and passed on by npm; milliseconds between two of the user's. */
const sameKeyPress = 500

/** Whether a long command should end early: finish what it is at, save, and go. */
export class Stop {
  #interrupted = false
  #closed = false

  /** From now on the first Ctrl-C asks for an end, and a second one ends the process at once. */
  constructor() {
    const interrupt = (): void => {
      this.#interrupted = true
      setTimeout(() => process.removeListener('SIGINT', interrupt), sameKeyPress).unref()
    }
    process.on('SIGINT', interrupt)
    onClosedPipe(() => {
      this.#closed = true
    })
  }

  readonly wanted = (): boolean => this.#interrupted || this.#closed

  get exitCode(): number {
    return this.#interrupted ? 130 : 0
  }
}
