import { turnIfDue } from '../runtime/turn.js'

/** Waits for values, but no longer than a loop. */
export class Waiting {
  #isOver = false
  #giveUp = (): void => {}

  end(): void {
    this.#isOver = true
    this.#giveUp()
  }

  /** A value; null when the loop has ended before it came: `drop` gets it when it comes. */
  for<V>(make: () => V | PromiseLike<V>, drop: (value: V) => void = () => {}): V | Promise<V | null> | null {
    if (this.#isOver) return null
    const made = make()
    if (!isPromise(made)) return made
    return new Promise((resolve, reject) => {
      this.#giveUp = () => {
        made.then(drop, () => {})
        resolve(null)
      }
      made.then(resolve, reject)
    })
  }

  /** The values of a stream until the loop ends. It then tells the stream, and does not wait for its answer. */
  async *each<T>(stream: Iterable<T> | AsyncIterable<T>): AsyncGenerator<T, void, undefined> {
    const iterator = begin(stream)
    let isDone = false
    try {
      for (;;) {
        isDone = true // unless it gives a value
        const next = await this.for(() => iterator.next())
        isDone = next?.done ?? false
        if (next === null || next.done) return
        yield next.value
        await turnIfDue()
      }
    } finally {
      if (!isDone) end(iterator)
    }
  }
}

export const isPromise = <V>(value: V | PromiseLike<V>): value is PromiseLike<V> =>
  typeof (value as PromiseLike<V> | null | undefined)?.then === 'function'

type AnyIterator<T> = Iterator<T> | AsyncIterator<T>

function begin<T>(stream: Iterable<T> | AsyncIterable<T>): AnyIterator<T> {
  const { [Symbol.asyncIterator]: later } = stream as Partial<AsyncIterable<T>>
  return later ? later.call(stream) : (stream as Iterable<T>)[Symbol.iterator]()
}

/** Errors have no one to go to. */
async function end(iterator: AnyIterator<unknown>): Promise<void> {
  try {
    await iterator.return?.()
  } catch {}
}
