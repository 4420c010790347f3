import { dtypeCode } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'

/** Orders that a seed, an epoch and a window alone decide. */

const maxWindows = 2 ** 22

/** 0 … n − 1 in the order number `step` of the seed. */
function permutation(n: number, seed: number, step: number): Int32Array {
  const order = new Int32Array(n)
  const handle = native.randperm({ shape: [n], dtype: dtypeCode('i32'), device: 0, seed, step })
  try {
    native.toData(handle, order)
  } finally {
    native.release(handle)
  }
  return order
}

const stepOf = (epoch: number, window: number): number => epoch * maxWindows + (window % maxWindows)

/** The order of the examples of a dataset. */
export function orderOf(length: number, shuffle: boolean, seed: number, epoch: number): Int32Array {
  return shuffle ? permutation(length, seed, stepOf(epoch, 0)) : Int32Array.from({ length }, (_, i) => i)
}

/** The examples of a stream, each window of them in another order. */
export async function* shuffledWindows<T>(
  examples: Iterable<T> | AsyncIterable<T>,
  size: number,
  seed: number,
  epoch: number,
): AsyncGenerator<T, void, undefined> {
  let held: T[] = []
  let window = 0
  const shuffled = (): T[] => {
    const order = permutation(held.length, seed, stepOf(epoch, window++))
    const all = Array.from(order, (i) => held[i])
    held = []
    return all
  }
  for await (const example of examples) {
    held.push(example)
    if (held.length === size) yield* shuffled()
  }
  yield* shuffled()
}
