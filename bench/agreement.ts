import type { Tensor } from '../lib/index.js'

/** The largest relative error of ours vs. theirs; throws if it is above `tolerance`. */
export function agreement(
  name: string,
  ours: Readonly<Record<string, Tensor>>,
  theirs: Readonly<Record<string, Tensor>>,
  tolerance: number,
): number {
  const errors = Object.entries(ours).map(([what, tensor]) => {
    const error = relativeError(tensor.dataSync(), theirs[what].dataSync())
    if (!(error <= tolerance)) throw new Error(`${what} of ${name} differs from ours by ${error.toExponential(1)}`)
    return error
  })
  return Math.max(...errors)
}

/** ‖a − b‖ / ‖b‖ */
function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.NaN
  let [difference, norm] = [0, 0]
  for (let i = 0; i < a.length; i++) {
    difference += (a[i] - b[i]) ** 2
    norm += b[i] ** 2
  }
  return Math.sqrt(difference / norm)
}
