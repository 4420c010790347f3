import { type Shape, slots } from './shapes.js'

/**
 * Seconds of exchanges and of a layer on paper. A message of n bytes takes latency + n / bandwidth, and each further one that
 * a rank sends begins a gap later (LogGP: Alexandrov et al., J. Parallel Distrib. Comput. 44 (1997) 71).
 */

export interface Link {
  /** Seconds of the first message, and from the start of one to that of the next. */
  latency: number
  gap: number
  /** Bytes per second that a rank sends, and receives meanwhile. */
  bandwidth: number
}

export interface Machine {
  name: string
  /** Ranks of a node, which `inside` connects; `between` connects nodes. */
  node: number
  inside: Link
  between: Link
  /** FLOP/s of a rank in GEMMs, as reached and as on the data sheet. */
  rate: number
  peak: number
  /** Bytes per second from and to memory, for what is not a GEMM. */
  memory: number
  /** Bytes that a rank may hold. */
  capacity: number
  /** How sums of all ranks are made: by {@link rankOrder} or by {@link ring}. */
  sums: 'rank order' | 'ring'
  /** How rows travel to other nodes: straight to their rank, or first to the rank of the same number there. */
  rows: 'direct' | 'by node'
  /** How many times as long a rank computes if all cores of its node do. */
  together: number
}

/** The ranks of a collective: how many, and how many of them are on one node. */
export interface Group {
  ranks: number
  perNode: number
}

/** `ranks` of a machine, of which each is `stride` after the one before. */
export const groupOf = ({ node }: Machine, ranks: number, stride = 1): Group => ({
  ranks,
  perNode: Math.min(ranks, Math.max(1, Math.floor(node / stride))),
})

/** Bytes of `bytes` that leave a rank, if each rank gets as many: (R − 1) / R. */
export const leaving = (bytes: number, ranks: number): number => (bytes * (ranks - 1)) / ranks

const sendSeconds = ({ latency, gap, bandwidth }: Link, messages: number, bytes: number): number =>
  messages === 0 ? 0 : latency + (messages - 1) * gap + bytes / bandwidth

/** Straight to each rank: R − 1 messages. What stays on the node and what leaves it travel at the same time. */
export function direct({ inside, between }: Machine, { ranks, perNode }: Group, bytes: number): number {
  const there = ranks - perNode
  const near = sendSeconds(inside, perNode - 1, (bytes * (perNode - 1)) / ranks)
  return Math.max(near, there > 0 ? sendSeconds(between, there, (bytes * there) / ranks) : 0)
}

export interface Forwarding {
  /** The part of the bytes that crosses if a row is sent once to each node, not once to each of its experts there. */
  once: number
  /** Whether the node hands on what has come while more is coming. */
  pipelined: boolean
}

const plain: Forwarding = { once: 1, pipelined: false }

/**
 * First to the rank of the same number on each node, then inside the node: Tutel's 2-D all-to-all (arXiv 2206.03382); DeepEP
 * does so once per node and pipelined.
 */
export function byNode(
  { inside, between }: Machine,
  { ranks, perNode }: Group,
  bytes: number,
  { once, pipelined } = plain,
): number {
  const nodes = ranks / perNode
  const near = sendSeconds(inside, perNode - 1, leaving(bytes, perNode))
  const far = sendSeconds(between, nodes - 1, once * leaving(bytes, nodes))
  return pipelined ? Math.max(near, far) : near + far
}

/** Nodes, of `nodes` alike, that the K experts of a token are on, at most `most`: n (1 − (1 − 1/n)^K). */
export const nodesVisited = (nodes: number, topK: number, most = nodes): number =>
  Math.min(most, nodes * (1 - (1 - 1 / nodes) ** topK))

/** Each rank passes `bytes`, an equal part to each. */
export function allToAll(machine: Machine, group: Group, bytes: number, forwarding = plain): number {
  if (group.ranks === 1) return 0
  const straight = direct(machine, group, bytes)
  return machine.rows === 'direct' ? straight : Math.min(straight, byNode(machine, group, bytes, forwarding))
}

/** Bytes per second of a ring: one link of each node crosses, or all do where the library makes a ring for each (NCCL). */
function ringBandwidth({ inside, between, node, sums }: Machine, { ranks, perNode }: Group): number {
  if (perNode >= ranks) return inside.bandwidth
  return sums === 'ring' ? Math.min(inside.bandwidth, between.bandwidth * Math.min(perNode, node)) : between.bandwidth
}

/** Every rank gets the parts of all, `bytes` together: R − 1 messages to the next rank. */
export function allGather(machine: Machine, group: Group, bytes: number): number {
  const { ranks, perNode } = group
  if (ranks === 1) return 0
  const { latency } = perNode >= ranks ? machine.inside : machine.between
  return (ranks - 1) * latency + leaving(bytes, ranks) / ringBandwidth(machine, group)
}

/** The sum of `bytes` of each rank: as this library does, parts to their rank, sums there in rank order, and an all-gather. */
export const rankOrder = (machine: Machine, group: Group, bytes: number): number =>
  direct(machine, group, bytes) + bytes / machine.memory + allGather(machine, group, bytes)

/** The same by a ring: 2 (R − 1) / R of the bytes (Patarasu and Yuan, J. Parallel Distrib. Comput. 69 (2009) 117). */
export const ring = (machine: Machine, group: Group, bytes: number): number => 2 * allGather(machine, group, bytes)

export function allReduce(machine: Machine, group: Group, bytes: number): number {
  if (group.ranks === 1) return 0
  return (machine.sums === 'ring' ? ring : rankOrder)(machine, group, bytes)
}

/** Bytes that a rank sends in an all-reduce, by either way. */
export const allReduceBytes = (bytes: number, ranks: number): number => 2 * leaving(bytes, ranks)

/** Bytes of a routed row on its way there and back: D, O, and one more number for its expert or weight. */
export const rowBytes = (dim: number, out: number, element: number): number => element * (dim + 1 + out)

/** FLOP of a row in a gated expert: three GEMMs forward, twice as many backward, two FLOP per weight. */
export const rowFlops = (dim: number, hidden: number): number => 18 * dim * hidden

/**
 * Bytes that what is not a GEMM moves of a row: of H numbers 9.5, of D numbers 13. bench/roofline.md counts so on the emulator:
 * `activate` 3 and `hidden` 6.5 of H in the layer of the README, and what is left is 13 of D.
 */
export const rowTraffic = (dim: number, hidden: number, element: number): number => element * (9.5 * hidden + 13 * dim)

/** Passes over the weights of the experts: packed forward and backward, their gradient cleared and written. */
export const weightPasses = 4

/** What a rank computes of a layer, forward and backward. */
export function layerWork(shape: Shape, ranks: number): { rows: number; flops: number; bytes: number } {
  const { dim, hidden, experts, sequences, tokens } = shape
  const rows = slots(shape) / ranks
  const router = (6 * dim * experts * sequences * tokens) / ranks
  const weights = (3 * dim * hidden * experts) / ranks
  return {
    rows,
    flops: rows * rowFlops(dim, hidden) + router,
    bytes: rows * rowTraffic(dim, hidden, 4) + 4 * weightPasses * weights,
  }
}

/** Seconds that a rank computes, if it has a core of its own. */
export function computeSeconds({ rate, memory }: Machine, shape: Shape, ranks: number): number {
  const { flops, bytes } = layerWork(shape, ranks)
  return flops / rate + bytes / memory
}

/** Seconds of the four exchanges of a layer, forward and backward. */
export function exchangeSeconds(machine: Machine, shape: Shape, ranks: number): number {
  const bytes = layerWork(shape, ranks).rows * rowBytes(shape.dim, shape.dim, 4)
  return 4 * allToAll(machine, groupOf(machine, ranks), bytes / 2)
}

/** Forward and backward of a layer whose experts `ranks` share out. Ranks that share a core take turns. */
export function layerSeconds(machine: Machine, shape: Shape, ranks: number): number {
  const { node, together } = machine
  const one = { ...machine, node: Math.max(node, ranks) }
  const waiting = Math.max(1, ranks / node) * (ranks > 1 ? together : 1)
  return computeSeconds(machine, shape, ranks) * waiting + exchangeSeconds(one, shape, ranks)
}
