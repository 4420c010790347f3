import { computeSeconds, exchangeSeconds, type Link, layerWork, leaving, type Machine } from './model.js'
import { exchangeBytes, fitted } from './shapes.js'

/** Coefficients a, b ≥ 0 of a · u + b · v = y with the least sum of squared relative errors. */
export function leastSquares(points: readonly (readonly [u: number, v: number, y: number])[]): [a: number, b: number] {
  let [uu, uv, vv, u1, v1] = [0, 0, 0, 0, 0]
  for (const [u, v, y] of points) {
    const [s, t] = [u / y, v / y]
    uu += s * s
    uv += s * t
    vv += t * t
    u1 += s
    v1 += t
  }
  const determinant = uu * vv - uv * uv
  const [a, b] = [(u1 * vv - v1 * uv) / determinant, (v1 * uu - u1 * uv) / determinant]
  if (a >= 0 && b >= 0) return [a, b]
  return a < 0 ? [0, v1 / vv] : [u1 / uu, 0]
}

/** Seconds by the name of a case. */
export type Seconds = (ranks: number, name: string) => number

/** A link, by all-to-alls of two ranks. What one more message takes is not measured: as long as the first. */
export function fitLink(seconds: Seconds): Link {
  const points = exchangeBytes.map((bytes) => [1, leaving(bytes, 2), seconds(2, `all-to-all ${bytes}`)] as const)
  const [latency, perByte] = leastSquares(points)
  return { latency, gap: latency, bandwidth: 1 / perByte }
}

/** A machine with one rank per core, by two layers on one rank and on two. */
export function fitMachine(base: Pick<Machine, 'name' | 'node' | 'capacity' | 'between'>, seconds: Seconds): Machine {
  const points = fitted.map((shape) => {
    const { flops, bytes } = layerWork(shape, 1)
    return [flops, bytes, seconds(1, shape.name)] as const
  })
  const [perFlop, perByte] = leastSquares(points)
  const inside = fitLink(seconds)
  const rates = { rate: 1 / perFlop, peak: 1 / perFlop, memory: 1 / perByte }
  const alone: Machine = { ...base, ...rates, inside, sums: 'rank order', rows: 'direct', together: 1 }
  const factors = fitted.map(
    (shape) => (seconds(2, shape.name) - exchangeSeconds(alone, shape, 2)) / computeSeconds(alone, shape, 2),
  )
  return { ...alone, together: Math.exp(factors.reduce((sum, factor) => sum + Math.log(factor), 0) / factors.length) }
}
