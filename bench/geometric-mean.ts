import type { Spread } from '../cli/index.js'

/** Geometric mean of several spreads, quartile by quartile. */
export function geometricMean(spreads: readonly Spread[]): Spread {
  const mean = (which: keyof Spread): number =>
    Math.exp(spreads.reduce((sum, spread) => sum + Math.log(spread[which]), 0) / spreads.length)
  return { median: mean('median'), low: mean('low'), high: mean('high') }
}
