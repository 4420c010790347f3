/**
 * Indices of the largest values, the lowest on ties. Only as many are put in order as a question needs, by selection
 * (Hoare, Algorithm 65), in a time that grows with their number where that of a sort grows faster.
 */
export class Descending {
  readonly #values: Float32Array
  readonly #indices: Int32Array
  #count: number

  private constructor(values: Float32Array, indices: Int32Array, count: number) {
    this.#values = values
    this.#indices = indices
    this.#count = count
  }

  /** Those of the `count` largest values. */
  static of(values: Float32Array, count: number): Descending {
    if (2 * count >= values.length) {
      const all = new Int32Array(values.length)
      for (let i = 0; i < all.length; i++) all[i] = i
      const whole = new Descending(values, all, values.length)
      return count < values.length ? whole.#first(count) : whole
    }
    const largest = new Descending(values, new Int32Array(2 * count + 64), 0)
    let least = Number.NaN // the first of the room are taken whatever they are
    for (let i = 0; i < values.length; i++) {
      if (values[i] <= least) continue
      largest.#indices[largest.#count++] = i
      if (largest.#count === largest.#indices.length) least = values[largest.#first(count).last]
    }
    return largest.#first(count)
  }

  /** The indices, in no order. */
  get indices(): Int32Array {
    return this.#indices.subarray(0, this.#count)
  }

  /** The last in order; no other is behind it. */
  get last(): number {
    return this.#indices[this.#count - 1]
  }

  #first(count: number): this {
    this.keep(
      () => 1,
      (sum) => sum >= count,
    )
    return this
  }

  /**
   * Keeps the first in order, as few as it takes for `reached` to be true of the sum of their weights, at least one; or all.
   * Returns the sum.
   */
  keep(weight: (index: number) => number, reached: (sum: number) => boolean): number {
    const indices = this.#indices
    let [from, to, before] = [0, this.#count, 0]
    while (from < to) {
      const middle = this.#partition(from, to)
      let sum = before
      for (let i = from; i < middle; i++) sum += weight(indices[i])
      const including = sum + weight(indices[middle])
      if (middle > from && reached(sum)) to = middle
      else if (!reached(including) && middle + 1 < to) [from, before] = [middle + 1, including]
      else {
        this.#count = middle + 1
        return including
      }
    }
    return before
  }

  /** Whether index a comes before b. */
  #precedes(a: number, b: number): boolean {
    const [x, y] = [this.#values[a], this.#values[b]]
    return x > y || (x === y && a < b)
  }

  /** Puts those before one of them in front of it, and returns where it is. */
  #partition(from: number, to: number): number {
    const indices = this.#indices
    const last = to - 1
    const pivot = this.#median(indices[from], indices[(from + to) >> 1], indices[last])
    let middle = from
    for (let i = from; i < to; i++) {
      const index = indices[i]
      if (!this.#precedes(index, pivot)) continue
      indices[i] = indices[middle]
      indices[middle++] = index
    }
    const at = indices.indexOf(pivot, middle)
    indices[at] = indices[middle]
    indices[middle] = pivot
    return middle
  }

  /** The second of three in order. */
  #median(a: number, b: number, c: number): number {
    if (this.#precedes(a, b)) return this.#precedes(b, c) ? b : this.#precedes(a, c) ? c : a
    return this.#precedes(a, c) ? a : this.#precedes(b, c) ? c : b
  }
}
