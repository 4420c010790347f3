/** Median and quartiles of samples. */
export interface Spread {
  median: number
  low: number
  high: number
}

/** Quantiles between two samples are interpolated. Throws without samples. */
export function spreadOf(samples: readonly number[]): Spread {
  if (samples.length === 0) throw new Error('spreadOf: samples must not be empty')
  const sorted = [...samples].sort((a, b) => a - b)
  const quantile = (q: number): number => {
    const at = q * (sorted.length - 1)
    const low = Math.floor(at)
    return sorted[low] + (at - low) * (sorted[Math.ceil(at)] - sorted[low])
  }
  return { median: quantile(0.5), low: quantile(0.25), high: quantile(0.75) }
}
