import type { Experts } from '../nn/experts.js'
import type { StateDict } from '../nn/state.js'
import { reshape } from '../ops/reshape.js'
import { concat, slice, transpose } from '../ops/strided.js'
import type { DType } from '../runtime/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import { fromMxfp4 } from './mxfp4.js'
import type { Family, Layout, Sizes } from './transformers-families.js'

/** Names and shapes of what a layer needs. */
export type Wanted = Map<string, readonly number[]>

/** Tensors by name, whose shapes are right. Converts them to a dtype. */
export class Stored {
  readonly #tensors: ReadonlyMap<string, Tensor>
  readonly #dtype: DType

  constructor(tensors: ReadonlyMap<string, Tensor>, dtype: DType) {
    this.#tensors = tensors
    this.#dtype = dtype
  }

  get(name: string): Tensor {
    return this.#tensors.get(name)!.to(this.#dtype)
  }

  /** What expert e has of a tensor [E, …]. */
  of(e: number, name: string): Tensor {
    const part = (full: string): Tensor | undefined => {
      const tensor = this.#tensors.get(full)
      return tensor && reshape(slice(tensor, 0, e, e + 1), tensor.shape.slice(1))
    }
    const own = part(name) ?? fromMxfp4(part(`${name}_blocks`)!, part(`${name}_scales`)!)
    return own.to(this.#dtype)
  }
}

/** The state of expert e, whose W1 has values (up) first, then gates. */
export function expertOf(stored: Stored, at: string, layout: Layout, e: number): StateDict {
  if (layout.kind === 'each') {
    const matrix = (name: string) => stored.get(`${at}${layout.experts}.${e}.${name}.weight`)
    return {
      'net.0.weight': concat([matrix(layout.up), matrix(layout.gate)]),
      'net.2.weight': matrix(layout.down),
    }
  }
  const { gateUp, down, transposed, interleaved, biases } = layout
  const matrix = (name: string) => (transposed ? transpose(stored.of(e, at + name)) : stored.of(e, at + name))
  const upFirst = (both: Tensor) => {
    const [rows, ...rest] = both.shape // [2H, …]
    const [axis, pairs] = interleaved ? [1, [rows / 2, 2, ...rest]] : [0, [2, rows / 2, ...rest]]
    const part = (i: number) => reshape(slice(reshape(both, pairs), axis, i, i + 1), [rows / 2, ...rest])
    return concat([part(1), part(0)])
  }
  return {
    'net.0.weight': upFirst(matrix(gateUp)),
    'net.2.weight': matrix(down),
    ...(biases && {
      'net.0.bias': upFirst(stored.of(e, `${at}${gateUp}_bias`)),
      'net.2.bias': stored.of(e, `${at}${down}_bias`),
    }),
  }
}

/** The inverse: the tensors of all experts under their names, from W1 [E, 2H, D], W2 [E, D, H] and biases. */
export function storedExperts({ w1, b1, w2, b2 }: Experts, at: string, layout: Layout): StateDict {
  const [E, rows] = w1.shape
  const H = rows / 2
  const half = (both: Tensor, i: number) => slice(both, 1, i * H, (i + 1) * H)
  if (layout.kind === 'each') {
    const all = { [layout.up]: half(w1, 0), [layout.gate]: half(w1, 1), [layout.down]: w2 as Tensor }
    const each = (stacked: Tensor, e: number) => reshape(slice(stacked, 0, e, e + 1), stacked.shape.slice(1))
    return Object.fromEntries(
      Object.entries(all).flatMap(([name, stacked]) =>
        Array.from({ length: E }, (_, e) => [`${at}${layout.experts}.${e}.${name}.weight`, each(stacked, e)]),
      ),
    )
  }
  const { gateUp, down, transposed, interleaved, biases } = layout
  const turned = (matrices: Tensor) => (transposed ? transpose(matrices) : matrices)
  const gateFirst = (both: Tensor) => {
    const rest = both.shape.slice(2)
    const part = (i: number) => (interleaved ? reshape(half(both, i), [E, H, 1, ...rest]) : half(both, i))
    return reshape(concat([part(1), part(0)], interleaved ? 2 : 1), both.shape)
  }
  return {
    [at + gateUp]: turned(gateFirst(w1)),
    [at + down]: turned(w2),
    ...(biases && b1 && { [`${at}${gateUp}_bias`]: gateFirst(b1) }),
    ...(biases && b2 && { [`${at}${down}_bias`]: b2 }),
  }
}

/** What a layer of a family needs, whose names begin with `at`. */
export function wantedOf(at: string, { layout, ...family }: Family, { D, H, E }: Sizes, sharedHidden: number): Wanted {
  const wanted: Wanted = new Map([[at + family.router, [E, D]]])
  if (family.routerBias) wanted.set(at + family.routerBias, [E])
  if (family.expertBias) wanted.set(at + family.expertBias, [E])
  if (layout.kind === 'each') {
    for (let e = 0; e < E; e++) {
      const name = `${at}${layout.experts}.${e}.`
      wanted.set(`${name}${layout.gate}.weight`, [H, D]).set(`${name}${layout.up}.weight`, [H, D])
      wanted.set(`${name}${layout.down}.weight`, [D, H])
    }
  } else {
    const shape = (rows: number, columns: number) => (layout.transposed ? [E, columns, rows] : [E, rows, columns])
    wanted.set(at + layout.gateUp, shape(2 * H, D)).set(at + layout.down, shape(D, H))
    if (layout.biases) wanted.set(`${at}${layout.gateUp}_bias`, [E, 2 * H]).set(`${at}${layout.down}_bias`, [E, D])
  }
  if (family.shared) {
    const name = at + family.shared.prefix
    wanted.set(`${name}gate_proj.weight`, [sharedHidden, D]).set(`${name}up_proj.weight`, [sharedHidden, D])
    wanted.set(`${name}down_proj.weight`, [D, sharedHidden])
    if (family.shared.gate) wanted.set(at + family.shared.gate, [1, D])
  }
  return wanted
}

/** How many tensors {@link wantedOf} lists. */
export function countOf({ layout, ...family }: Family, { E }: Sizes): number {
  const ofRouter = 1 + (family.routerBias ? 1 : 0) + (family.expertBias ? 1 : 0)
  const ofExperts = layout.kind === 'each' ? 3 * E : layout.biases ? 4 : 2
  const ofShared = family.shared ? 3 + (family.shared.gate ? 1 : 0) : 0
  return ofRouter + ofExperts + ofShared
}
