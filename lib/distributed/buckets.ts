import type { LeafGradients } from '../autograd/backward.js'
import { scope } from '../autograd/scope.js'
import type { Module } from '../nn/module.js'
import type { Parameter } from '../nn/parameter.js'
import { sharedOut } from '../nn/shared-out.js'
import { allGather } from '../ops/all-gather.js'
import { allReduce } from '../ops/all-reduce.js'
import { add, mul } from '../ops/binary.js'
import { overwrite } from '../ops/copy.js'
import { reduceScatter } from '../ops/reduce-scatter.js'
import { reshape } from '../ops/reshape.js'
import { concat, slice } from '../ops/strided.js'
import { bytesOf } from '../runtime/dtype.js'
import type { ProcessGroup } from '../runtime/process-group.js'
import { tensor, zeros } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'

/** By the tensors of experts that ranks share out: the ranks that hold the same, null for one. All others are on every rank. */
export type Parts = ReadonlyMap<Tensor, ProcessGroup | null>

export function partsOf(model: Module, group: ProcessGroup): Parts {
  const shared = sharedOut(model)
  const parts = new Map<Tensor, ProcessGroup | null>()
  if (shared.length === 0 || group.size === 1) return parts
  const held = Int32Array.from(shared.flatMap(({ share: { first, count } }) => [first, count]))
  using mine = tensor(held, [1, held.length])
  using all = allGather(mine, group)
  const numbers = all.dataSync()
  const made = new Map<string, ProcessGroup | null>()
  for (const [i, { module }] of shared.entries()) {
    const keys = Array.from({ length: group.size }, (_, r) => {
      const at = r * held.length + 2 * i
      return `${numbers[at]} ${numbers[at + 1]}`
    })
    for (const key of new Set(keys)) {
      const ranks = keys.flatMap((other, r) => (other === key ? [r] : []))
      const list = ranks.join()
      if (!made.has(list)) made.set(list, ranks.length === 1 ? null : group.newGroup(ranks))
      if (!ranks.includes(group.rank)) continue
      for (const { tensor } of module.stateEntries()) parts.set(tensor, made.get(list)!)
      for (const parameter of module.parameters()) parts.set(parameter, made.get(list)!)
    }
  }
  return parts
}

/** Parameters of one group, dtype and device, whose gradients travel together, in the order of the ranks that update them. */
export class Bucket {
  /** The ranks that have them; null for this one alone. */
  readonly group: ProcessGroup | null
  readonly parameters: readonly Parameter[]
  /** By parameter: the rank of the group that updates it; null if all do. */
  readonly #owners: ReadonlyMap<Parameter, number> | null

  constructor(
    group: ProcessGroup | null,
    parameters: readonly Parameter[],
    owners: ReadonlyMap<Parameter, number> | null,
  ) {
    this.group = group && group.size > 1 ? group : null
    this.#owners = this.group && owners
    const owner = (parameter: Parameter): number => this.#owners?.get(parameter) ?? 0
    this.parameters = [...parameters].sort((a, b) => owner(a) - owner(b))
  }

  /** Whether this rank updates a parameter. */
  owns(parameter: Parameter): boolean {
    return this.#owners === null || this.#owners.get(parameter) === this.group!.rank
  }

  /** The parameters that this rank updates. */
  get own(): readonly Parameter[] {
    return this.parameters.filter((parameter) => this.owns(parameter))
  }

  /** Sums the gradients over the group; adds to those of parameters that this rank updates. `gathered` are of this rank. */
  addUp({ take, put }: LeafGradients, gathered: ReadonlySet<Parameter>, scale: number): void {
    scope(() => {
      const flat = this.#flat(
        this.parameters.map((parameter) => {
          const { grad, shape, dtype, device } = parameter
          const before = gathered.has(parameter) ? grad : null
          const last = take(parameter)
          return before && last ? add(before, last) : (before ?? last ?? zeros(shape, { dtype, device }))
        }),
      )
      const sum = this.#sum(flat)
      this.#cut(scale === 1 ? sum : mul(sum, scale), this.own, put)
    })
  }

  #sum(flat: Tensor): Tensor {
    if (!this.group) return flat
    return this.#owners ? reduceScatter(flat, this.group, { splits: this.#splits() }) : allReduce(flat, this.group)
  }

  /** After a step of the ranks that update them: each parameter is that of its rank. */
  share(): void {
    if (!this.#owners) return
    scope(() => {
      const all = allGather(this.#flat(this.own), this.group!, { splits: this.#splits() })
      this.#cut(all, this.parameters, (parameter, value) => {
        if (!this.owns(parameter)) overwrite(parameter, value)
      })
    })
  }

  /** The elements of each rank. */
  #splits(): number[] {
    const splits = Array<number>(this.group!.size).fill(0)
    for (const parameter of this.parameters) splits[this.#owners!.get(parameter)!] += parameter.size
    return splits
  }

  #flat(tensors: readonly Tensor[]): Tensor {
    const { dtype, device } = this.parameters[0]
    const rows = tensors.map((tensor) => reshape(tensor, [tensor.size]))
    if (rows.length === 0) return zeros([0], { dtype, device })
    return rows.length === 1 ? rows[0] : concat(rows, 0)
  }

  #cut(flat: Tensor, parameters: readonly Parameter[], each: (parameter: Parameter, part: Tensor) => void): void {
    let at = 0
    for (const parameter of parameters) {
      each(parameter, reshape(slice(flat, 0, at, at + parameter.size), parameter.shape))
      at += parameter.size
    }
  }
}

/** Neighbors of one group, dtype and device together, up to a size; with `sharded`, each parameter has one rank that updates it. */
export function bucketsOf(
  parameters: readonly Parameter[],
  groupOf: (parameter: Parameter) => ProcessGroup | null,
  { bucketBytes, sharded }: { bucketBytes: number; sharded: boolean },
): Bucket[] {
  const buckets: { group: ProcessGroup | null; parameters: Parameter[]; bytes: number }[] = []
  for (const parameter of parameters) {
    const group = groupOf(parameter)
    const bytes = bytesOf(parameter)
    const fits = buckets.find(
      (bucket) =>
        bucket.group === group &&
        bucket.parameters[0].dtype === parameter.dtype &&
        bucket.parameters[0].device === parameter.device &&
        bucket.bytes + bytes <= bucketBytes,
    )
    if (fits) {
      fits.parameters.push(parameter)
      fits.bytes += bytes
    } else buckets.push({ group, parameters: [parameter], bytes })
  }
  const owners = sharded ? ownersOf(parameters, groupOf) : null
  return buckets.map(({ group, parameters }) => new Bucket(group, parameters, owners))
}

/** The largest parameter first, each to the rank of its group with the fewest bytes so far. */
function ownersOf(
  parameters: readonly Parameter[],
  groupOf: (parameter: Parameter) => ProcessGroup | null,
): ReadonlyMap<Parameter, number> {
  const loads = new Map<ProcessGroup | null, number[]>()
  const owners = new Map<Parameter, number>()
  for (const parameter of [...parameters].sort((a, b) => bytesOf(b) - bytesOf(a))) {
    const group = groupOf(parameter)
    const load = loads.get(group) ?? Array<number>(group?.size ?? 1).fill(0)
    const owner = load.indexOf(Math.min(...load))
    load[owner] += bytesOf(parameter)
    loads.set(group, load)
    owners.set(parameter, owner)
  }
  return owners
}
