import { availableParallelism } from 'node:os'

/** The C++ compiler of tests that compile something small themselves. */
export const compiler = process.env.CXX ?? 'c++'

/** Calls f(item, its index) for each, as many at a time as there are processors. */
export async function inParallel<T>(items: readonly T[], f: (item: T, i: number) => Promise<void>): Promise<void> {
  let next = 0
  const work = async () => {
    while (next < items.length) await f(items[next], next++)
  }
  await Promise.all(Array.from({ length: availableParallelism() }, work))
}
