/** Median and quartiles of samples. */
export interface Spread {
  median: number
  low: number
  high: number
}

export function spreadOf(values: readonly number[]): Spread {
  if (values.length === 0) throw new Error('spreadOf: values must not be empty')
  const sorted = [...values].sort((a, b) => a - b)
  const quantile = (q: number): number => {
    const at = q * (sorted.length - 1)
    const low = Math.floor(at)
    const high = Math.min(low + 1, sorted.length - 1)
    return sorted[low] + (at - low) * (sorted[high] - sorted[low])
  }
  return { median: quantile(0.5), low: quantile(0.25), high: quantile(0.75) }
}

export function geometricMean(values: readonly number[]): number {
  if (values.length === 0) throw new Error('geometricMean: values must not be empty')
  return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length)
}

/** Of several spreads, quartile by quartile. */
export const geometricMeanOf = (spreads: readonly Spread[]): Spread => ({
  median: geometricMean(spreads.map(({ median }) => median)),
  low: geometricMean(spreads.map(({ low }) => low)),
  high: geometricMean(spreads.map(({ high }) => high)),
})
