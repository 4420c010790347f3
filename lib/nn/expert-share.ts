import { mayWait, refuseToWait } from '../autograd/context.js'
import { allGather } from '../ops/all-gather.js'
import { allToAll, exchange } from '../ops/all-to-all.js'
import { combine, combineRows } from '../ops/combine.js'
import { dispatch, dispatchRows } from '../ops/dispatch.js'
import { type ExpertFfnOptions, type ExpertWeights, expertFfn } from '../ops/expert-ffn.js'
import { countedPlan, type SlotPlan } from '../ops/plan.js'
import { reshape } from '../ops/reshape.js'
import type { Routing } from '../ops/routing.js'
import { concat, slice, transpose } from '../ops/strided.js'
import { fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { boolean, type Option, type OptionsOf, onlyIfSet, optional } from '../runtime/options.js'
import { groupHandle, type ProcessGroup } from '../runtime/process-group.js'
import { ones, tensor, zeros } from '../tensor/create.js'
import { share } from '../tensor/handles.js'
import { handleOf, type Tensor } from '../tensor/tensor.js'

const processGroup: Option<ProcessGroup | undefined> = optional({
  check: (op, name, value) => {
    groupHandle(op, value as ProcessGroup, name)
    return value as ProcessGroup
  },
})

/** Of a layer whose experts the ranks of a group may share out. */
export const shareOptions = {
  /**
   * Expert parallelism: its ranks share out the experts, and all call the layer together, forward and backward. A rank has
   * the parameters of its own experts alone. By default one process has all.
   */
  processGroup,
  ...onlyIfSet('processGroup', {
    /** The ranks may have other numbers of sequences and tokens, also none. Default false: that is an error. */
    allowVarSeqLen: boolean({ default: false }),
  }),
}

type ShareOptions = { [N in keyof OptionsOf<typeof shareOptions>]: OptionsOf<typeof shareOptions>[N] }

/** The sizes of a routing: sequences, tokens of each, slots of an expert for each. */
export type Sizes = readonly [B: number, N: number, C: number]

const sum = (list: readonly number[]): number => list.reduce((a, b) => a + b, 0)

/**
 * Which experts a rank holds. R ranks have consecutive ones of E ≥ R, the first E mod R of them one more. Of more ranks than
 * experts, rank r has a replica of expert r mod E.
 */
function partOf(numExperts: number, ranks: number, rank: number): { first: number; count: number } {
  if (ranks > numExperts) return { first: rank % numExperts, count: 1 }
  const [least, more] = [Math.floor(numExperts / ranks), numExperts % ranks]
  return { first: rank * least + Math.min(rank, more), count: least + (rank < more ? 1 : 0) }
}

/**
 * How many experts of each rank compute the rows of rank `from`: together all E, in order. Replicas are taken by blocks of E
 * ranks; ranks after the last whole block compute none.
 */
function holdersFor(numExperts: number, ranks: number, from: number): number[] {
  const all = Array.from({ length: ranks }, (_, r) => r)
  if (ranks <= numExperts) return all.map((r) => partOf(numExperts, ranks, r).count)
  const block = Math.floor(from / numExperts) % Math.floor(ranks / numExperts)
  return all.map((r) => (Math.floor(r / numExperts) === block ? 1 : 0))
}

/** That of a layer with E experts; null if this process has them all. */
export const shareOf = (
  numExperts: number,
  { processGroup, allowVarSeqLen = false }: ShareOptions,
): ExpertShare | null =>
  processGroup && processGroup.size > 1 ? new ExpertShare(numExperts, processGroup, allowVarSeqLen) : null

/** The experts of a layer that this rank holds, and the way of rows to those of other ranks and back. */
export class ExpertShare {
  /** The first of this rank. */
  readonly first: number
  /** How many this rank has. */
  readonly count: number
  readonly #numExperts: number
  readonly #group: ProcessGroup
  readonly #varies: boolean
  /** By rank: how many of its experts compute rows of this one. */
  readonly #sent: readonly number[]
  /** By rank: how many experts of this one compute its rows. */
  readonly #received: readonly number[]

  constructor(numExperts: number, group: ProcessGroup, varies: boolean) {
    const { rank, size } = group
    const { first, count } = partOf(numExperts, size, rank)
    this.first = first
    this.count = count
    this.#numExperts = numExperts
    this.#group = group
    this.#varies = varies
    this.#sent = holdersFor(numExperts, size, rank)
    this.#received = Array.from({ length: size }, (_, r) => holdersFor(numExperts, size, r)[rank])
  }

  /** The numbers of the experts that this rank has not. */
  elsewhere(): number[] {
    const all = Array.from({ length: this.#numExperts }, (_, e) => e)
    return all.filter((e) => e < this.first || e >= this.first + this.count)
  }

  /** How the names of {@link elsewhere} begin in the state of the experts. */
  namesElsewhere(): string[] {
    return this.elsewhere().map((e) => `experts.${e}.`)
  }

  /** A row for each slot of the sizes that ranks have, by {@link sizesOf}; without them one row for each expert. */
  slots(sizes?: readonly Sizes[]): ExpertTraffic {
    const rows = sizes?.map(([B, , C]) => B * C) ?? Array<number>(this.#group.size).fill(1)
    return new ExpertTraffic(
      this.#group,
      this.#sent.map((experts) => experts * rows[this.#group.rank]),
      this.#received.map((experts, r) => Array<number>(experts).fill(rows[r])),
    )
  }

  /** B, N and C of every rank. Errors: SHAPE if they differ without `allowVarSeqLen`. */
  sizesOf(op: string, own: Sizes): readonly Sizes[] {
    if (!mayWait()) {
      if (this.#varies) refuseToWait(op, 'allowVarSeqLen asks the other ranks for their lengths')
      return Array<Sizes>(this.#group.size).fill(own)
    }
    using row = tensor(Int32Array.from(own), [1, 3])
    using found = allGather(row, this.#group)
    const numbers = found.dataSync()
    const sizes = Array.from({ length: this.#group.size }, (_, r) => [...numbers.subarray(3 * r, 3 * r + 3)] as const)
    const other = sizes.findIndex((each) => each.some((n, i) => n !== own[i]))
    if (other >= 0 && !this.#varies) {
      const shown = (r: number) => `rank ${r} has ${showShape(sizes[r].slice(0, 2))} with ${sizes[r][2]} slots`
      const [a, b] = [this.#group.rank, other].sort((x, y) => x - y)
      fail(
        'SHAPE',
        op,
        `x must be [B, N, D] of the same size on all ranks without allowVarSeqLen: ${shown(a)}, ${shown(b)}`,
      )
    }
    return sizes as unknown as readonly Sizes[]
  }

  /** As many rows of each expert as `counts` says. It waits for the other ranks. */
  counted(counts: readonly number[]): ExpertTraffic {
    using mine = tensor(Int32Array.from(counts), [counts.length])
    const [splits, outputSplits] = [this.#sent, this.#received]
    using found = allToAll(mine, this.#group, { splits, outputSplits })
    const numbers = [...found.dataSync()]
    const received = outputSplits.map((experts) => numbers.splice(0, experts))
    const ends = splits.map((_, r) => sum(splits.slice(0, r + 1)))
    const sent = splits.map((experts, r) => sum(counts.slice(ends[r] - experts, ends[r])))
    return new ExpertTraffic(this.#group, sent, received)
  }

  /**
   * Σ weight · expert(x) for tokens x [B, N, D] of this rank; `compute` has the rows [m, D] of this rank's experts and
   * returns theirs, [m, O]. `ragged`: dispatched rows alone travel, if the host may wait for their number, and not the slots.
   */
  apply<D extends DType>(
    op: string,
    x: Tensor<D>,
    routing: Routing<D>,
    { ragged, straightThrough }: { ragged: boolean; straightThrough: boolean },
    compute: (rows: Tensor<D>, traffic: ExpertTraffic) => Tensor<D>,
  ): Tensor<D> {
    const { numExperts: E, capacity: C } = routing
    const [B, N, D] = x.shape
    const sizes = this.sizesOf(op, [B, N, C])
    if (ragged && mayWait()) {
      const { plan, counts } = countedPlan(op, routing, E)
      const rows = dispatchRows(op, x, routing, held(plan), [sum(counts), D], straightThrough)
      const traffic = this.counted(counts)
      return combineRows(op, traffic.back(compute(traffic.there(rows), traffic)), routing, held(plan))
    }
    const traffic = this.slots(sizes)
    const rows = reshape(dispatch(x, routing, { straightThrough }), [E * B * C, D])
    const y = traffic.back(compute(traffic.there(rows), traffic))
    return combine(reshape(y, [E, B, C, y.shape[1]]), routing)
  }
}

/** Rows on their way to the ranks of their experts, and back. */
export class ExpertTraffic {
  /** The rows of each rank for each expert of this one that computes them. */
  readonly from: readonly (readonly number[])[]
  readonly #group: ProcessGroup
  readonly #sent: readonly number[]
  readonly #received: readonly number[]
  /** What has come. */
  readonly #come: Tensor[] = []

  constructor(group: ProcessGroup, sent: readonly number[], from: readonly (readonly number[])[]) {
    this.from = from
    this.#group = group
    this.#sent = sent
    this.#received = from.map(sum)
  }

  /** Rows of all experts, in order → those of this rank's experts, by the rank that sent them. */
  there<D extends DType>(rows: Tensor<D>): Tensor<D> {
    const come = this.#exchange(rows, this.#sent, this.#received)
    this.#come.push(come)
    return come
  }

  /** The opposite. Its backward runs before those of {@link there} on every rank, whatever its experts do. */
  back<D extends DType>(rows: Tensor<D>): Tensor<D> {
    return this.#exchange(rows, this.#received, this.#sent)
  }

  #exchange<D extends DType>(rows: Tensor<D>, sent: readonly number[], received: readonly number[]): Tensor<D> {
    const handle = groupHandle('allToAll', this.#group)
    return exchange('allToAll', rows, handle, Float64Array.from(sent), Float64Array.from(received), [...this.#come])
  }

  /** The experts of this rank, by {@link expertFfn}, on rows [m, D] that have come → [m, O]. */
  ffn<D extends DType>(rows: Tensor<D>, weights: ExpertWeights, options: ExpertFfnOptions): Tensor<D> {
    const [m, D] = rows.shape
    const [E, O] = weights.w2.shape
    const senders = this.from.filter(({ length }) => length > 0).length
    const each = m === 0 ? 0 : m / (E * senders)
    if (!this.from.every((counts) => counts.every((count) => count === each))) {
      const y = expertFfn(reshape(rows, [1, m, D]), this.#routing(rows, E), weights, options)
      return reshape(y, [m, O])
    }
    // sorted by expert on the device: a captured step cannot have indices of the host
    const turned = (x: Tensor<D>, a: number, b: number, width: number) =>
      m === 0 ? x : transpose(reshape(x, [a, b, each * width]), 0, 1)
    const sorted = reshape(turned(rows, senders, E, D), [E, senders * each, D])
    return reshape(turned(expertFfn(sorted, null, weights, options), E, senders, O), [m, O])
  }

  /** Each row is a token that has chosen its expert. */
  #routing<D extends DType>({ shape: [m], dtype, device }: Tensor<D>, numExperts: number): Routing<D> {
    const [experts, slots] = [new Int32Array(m), new Int32Array(m)]
    const used = Array<number>(numExperts).fill(0)
    let at = 0
    for (const counts of this.from)
      for (const [e, rows] of counts.entries())
        for (const end = at + rows; at < end; at++) {
          experts[at] = e
          slots[at] = used[e]++
        }
    const shape = [1, m, 1]
    const weight = ones(shape, { dtype, device })
    return {
      expertIndex: tensor(experts, shape, { device }),
      position: tensor(slots, shape, { device }),
      kept: ones(shape, { dtype: 'i32', device }),
      gate: weight,
      weight,
      capacity: m,
      numExperts,
      mask: null,
    }
  }
}

/** An expert on its slots [B, C, …] of each input, of sequences of N tokens → [B, C, O], and a row [W] of the whole expert. */
type CallExpert<D extends DType> = (
  expert: number,
  slots: readonly Tensor<D>[],
  N: number,
) => readonly [y: Tensor<D>, row?: Tensor<D>]

/**
 * Calls each expert of this process with its slots of inputs [E, B, C, …]; if a group shares out the experts, with those of
 * one rank after the other. Returns what it makes of all experts: y [E, B, C, O], and the rows [E, W]. `widths` are O and W.
 */
export function eachExpert<D extends DType>(
  { op, share, N }: { op: string; share: ExpertShare | null; N: number },
  inputs: readonly Tensor<D>[],
  widths: readonly number[],
  call: CallExpert<D>,
): Tensor<D>[] {
  const [E, B, C] = inputs[0].shape
  const shapes = [[E, B, C], [E]]
  const flat = inputs.map((input) => reshape(input, [E * B * C, ...input.shape.slice(3)]))
  const joined = (results: readonly (readonly (Tensor<D> | undefined)[])[], i: number) =>
    concat(
      results.map(({ [i]: y }) => reshape(y!, [y!.size / widths[i], widths[i]])),
      0,
    )
  const whole = (rows: Tensor<D>, i: number) => reshape(rows, [...shapes[i], widths[i]])
  if (!share) {
    const results = cut(flat, Array(E).fill([B, C])).map((slots, e) => call(e, slots, N))
    return widths.map((_, i) => whole(joined(results, i), i))
  }
  const sizes = share.sizesOf(op, [B, N, C])
  const traffic = [share.slots(sizes), share.slots()]
  const come = flat.map((rows) => traffic[0].there(rows))
  const calls = traffic[0].from.flatMap((counts, r) => counts.map((_, e) => ({ e, size: sizes[r] })))
  const slots = cut(
    come,
    calls.map(({ size: [B, , C] }) => [B, C]),
  )
  const results = calls.map(({ e, size }, i) => call(share.first + e, slots[i], size[1]))
  return widths.map((W, i) => {
    const { dtype, device } = come[0]
    const made = results.length > 0 ? joined(results, i) : (zeros([0, W], { dtype, device }) as Tensor<D>)
    return whole(traffic[i].back(made), i)
  })
}

/** Rows [m, …] of each input, cut into consecutive parts of the shapes [B, C, …]. */
function cut<D extends DType>(inputs: readonly Tensor<D>[], shapes: readonly (readonly number[])[]): Tensor<D>[][] {
  let at = 0
  return shapes.map(([B, C]) => {
    const from = at
    at += B * C
    return inputs.map((rows) => reshape(slice(rows, 0, from, at), [B, C, ...rows.shape.slice(1)]))
  })
}

/** The handles of a plan, for an op that takes them over. */
const held = ([assignment, rowOf]: readonly Tensor[]): SlotPlan => [share(handleOf(assignment)), share(handleOf(rowOf))]
