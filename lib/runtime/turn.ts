/** A loop that never waits for more than a promise keeps timers, signals and I/O from running. This is how often they do. */
const interval = 5

let last = performance.now()

/** Waits until timers, signals and I/O have had their turn. */
export const nextTurn = (): Promise<void> =>
  new Promise((resolve) => {
    setImmediate(() => {
      last = performance.now()
      resolve()
    })
  })

/** {@link nextTurn} if the last was 5 milliseconds ago, else nothing: `await` what it returns after each step of a loop. */
export const turnIfDue = (): Promise<void> | undefined => (performance.now() - last < interval ? undefined : nextTurn())
