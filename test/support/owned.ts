import { onTestFinished } from 'vitest'

export const owned: { dispose(): void }[] = []

/** What the test frees at its end. */
export const own = <T extends { dispose(): void }>(value: T): T => {
  if (owned.push(value) === 1) onTestFinished(disposeOwned)
  return value
}

/** Frees it now. */
export function disposeOwned(): void {
  for (const value of owned.splice(0)) value.dispose()
}
