import { allReduce, allToAll, groupOf, type Machine, nodesVisited, rowBytes } from './model.js'
import { type Model, parametersOf, tokenFlops } from './models.js'

/** How ranks share out a model. Ranks = dataParallel × pipeline; expertParallel divides dataParallel. */
export interface Layout {
  ranks: number
  expertParallel: number
  /** Each rank updates its part of the parameters that it shares with others (ZeRO-1, arXiv 1910.02054, §5). */
  shardOptimizer: boolean
  /** Only the inputs of layers are kept for the backward, which runs the forward again (arXiv 1604.06174). */
  recompute: boolean
  /** Stages. This library has none: more than one is what other systems do. */
  pipeline: number
}

/** Bytes per number of rows that travel, of a weight, its gradient and its state, and of a saved activation. */
export interface Numbers {
  row: number
  weight: number
  gradient: number
  state: number
  saved: number
  /** Whether a row is sent to a node once, and exchanges run while ranks compute. */
  overlap: boolean
}

/** This library: float32 everywhere; with bf16 GEMMs a packed copy of the weights, and bf16 between the GEMMs. */
export const ownNumbers = ({ low }: Model): Numbers => ({
  ...{ row: 4, weight: low ? 6 : 4, gradient: 4, state: 8, saved: low ? 2 : 4, overlap: false },
})

/** Mixed precision as in Megatron-Core: bf16 rows and weights, float32 gradients, master weights and AdamW's two averages. */
export const mixedNumbers: Numbers = { row: 2, weight: 2, gradient: 4, state: 12, saved: 2, overlap: true }

const dataParallel = ({ ranks, pipeline }: Layout): number => ranks / pipeline

/** Sequences per rank and step: those of the batch, shared out; at least one. */
export const sequencesOf = (model: Model, layout: Layout): number =>
  Math.max(1, Math.ceil(model.batch / dataParallel(layout)))

/** Parameters of a rank: of all else than experts, and of its experts. */
function held(model: Model, { expertParallel, pipeline }: Layout): { others: number; experts: number } {
  const { experts, others } = parametersOf(model)
  return { others: others / pipeline, experts: experts / (pipeline * expertParallel) }
}

/** Parameters whose state a rank has. */
function updated(model: Model, layout: Layout): number {
  const { others, experts } = held(model, layout)
  if (!layout.shardOptimizer) return others + experts
  const ranks = dataParallel(layout)
  return others / ranks + experts / (ranks / layout.expertParallel)
}

/** Numbers that a layer saves of a token: about 10 D beside the experts, and of each row its input, its output and 3 H. */
function savedOf(model: Model): number {
  const { dim, hidden, shared, dense, rows, layers, denseLayers } = model
  const sparse = (layers - denseLayers) / layers
  return 10 * dim + 3 * (shared * sparse + dense * (1 - sparse)) + sparse * rows * (2 * dim + 3 * hidden)
}

/** Layers of the longest stage. */
const layersOf = (model: Model, { pipeline }: Layout): number => Math.ceil(model.layers / pipeline)

export interface Memory {
  weights: number
  gradients: number
  state: number
  activations: number
}

/** Bytes of a rank. */
export function memoryOf(model: Model, layout: Layout, numbers = ownNumbers(model)): Memory {
  const { others, experts } = held(model, layout)
  const sequences = sequencesOf(model, layout)
  const tokens = model.context * (isAtOnce(model) ? sequences : 1)
  const layers = layersOf(model, layout)
  // A stage holds what the later ones have not given back: a sequence for each of them, and some of interleaved chunks.
  const ahead = layout.pipeline + (layout.pipeline - 1) / layers
  const inFlight = Math.min(sequences, ahead)
  const saved = numbers.saved * savedOf(model)
  const layer = layout.recompute ? 4 * model.dim : saved
  return {
    weights: numbers.weight * (others + experts),
    // Gradients of several sequences gather, whole, before they travel.
    gradients: numbers.gradient * (sequences > 1 && !isAtOnce(model) ? others + experts : updated(model, layout)),
    state: numbers.state * updated(model, layout),
    activations: tokens * (inFlight * layers * layer + (layout.recompute ? saved : 0) + 8 * model.vocab),
  }
}

/** The trainer of this library computes the sequences of a rank together; large models take one after the other. */
const isAtOnce = ({ low }: Model): boolean => !low

export const sumOf = ({ weights, gradients, state, activations }: Memory): number =>
  weights + gradients + state + activations

export interface Step {
  /** Seconds of GEMMs and all else that a rank computes, of rows to experts and back, of gradients, of the optimizer. */
  compute: number
  rows: number
  gradients: number
  update: number
  /** Waiting for the first and last stage, and what stages pass on. */
  stages: number
}

/** The parts of a step, in seconds. */
export function stepOf(machine: Machine, model: Model, layout: Layout, numbers = ownNumbers(model)): Step {
  const { expertParallel, pipeline, recompute } = layout
  const ranks = dataParallel(layout)
  const sequences = sequencesOf(model, layout)
  const tokens = sequences * model.context
  const again = recompute ? 4 / 3 : 1
  const layers = layersOf(model, layout)
  const part = layers / model.layers
  const flops = tokens * tokenFlops(model) * again * part
  const moved = tokens * layers * 2 * numbers.saved * savedOf(model) * again
  const together = ranks > 1 ? machine.together : 1
  const compute = (flops / machine.rate + moved / machine.memory) * together
  const calls = isAtOnce(model) ? 1 : sequences
  const bytes = (tokens / calls) * model.rows * rowBytes(model.dim, model.dim, numbers.row)
  const group = groupOf(machine, expertParallel)
  const nodes = nodesVisited(group.ranks / group.perNode, model.topK, model.topNodes)
  const forwarding = numbers.overlap ? { once: nodes / model.topK, pipelined: true } : undefined
  const exchange = allToAll(machine, group, bytes / 2, forwarding)
  const sparse = layers * (1 - model.denseLayers / model.layers)
  const rows = sparse * calls * exchange * (recompute ? 6 : 4)
  const { others, experts } = held(model, layout)
  const copies = groupOf(machine, ranks / expertParallel, expertParallel)
  const gradients = allReduce(machine, groupOf(machine, ranks), 4 * others) + allReduce(machine, copies, 4 * experts)
  // Interleaved stages of one layer each (Narayanan et al., arXiv 2104.04473, §2.2): less waiting, more to pass on.
  const bubble = ((compute + rows) * (pipeline - 1)) / (sequences * layers)
  const passed = pipeline > 1 ? (2 * layers * tokens * model.dim * numbers.row) / machine.between.bandwidth : 0
  // AdamW reads and writes weight and both averages, and reads the gradient.
  const update = (28 * updated(model, layout)) / machine.memory
  return { compute, rows, gradients, update, stages: bubble + passed }
}

/** One part after the other; with `overlap`, exchanges of rows and gradients run while the rank computes. */
export const secondsOf = ({ compute, rows, gradients, update, stages }: Step, overlap = false): number =>
  (overlap ? Math.max(compute, rows + gradients) : compute + rows + gradients) + update + stages

/** Tokens of a step. */
export const tokensOf = (model: Model, layout: Layout): number =>
  sequencesOf(model, layout) * dataParallel(layout) * model.context

/** Model FLOPs utilization: needed FLOP (arXiv 2204.02311, appendix B) per second and rank, of the data sheet's rate. */
export const utilization = (machine: Machine, model: Model, layout: Layout, seconds: number): number =>
  (tokensOf(model, layout) * tokenFlops(model, model.topK)) / (seconds * layout.ranks * machine.peak)

const powers = (most: number): number[] => Array.from({ length: Math.floor(Math.log2(most)) + 1 }, (_, i) => 2 ** i)

/** Every layout of so many ranks. */
export function layoutsOf(model: Model, ranks: number, stages: boolean): Layout[] {
  const flags = [false, true]
  return powers(stages ? Math.min(ranks, model.layers, 16) : 1).flatMap((pipeline) =>
    powers(Math.min(ranks / pipeline, model.experts)).flatMap((expertParallel) =>
      flags.flatMap((shardOptimizer) =>
        flags.map((recompute) => ({ ranks, expertParallel, shardOptimizer, recompute, pipeline })),
      ),
    ),
  )
}

export interface Choice {
  layout: Layout
  memory: number
  step: Step
  seconds: number
}

const choiceOf = (machine: Machine, model: Model, layout: Layout, numbers: Numbers): Choice => {
  const step = stepOf(machine, model, layout, numbers)
  return { layout, memory: sumOf(memoryOf(model, layout, numbers)), step, seconds: secondsOf(step, numbers.overlap) }
}

/** The fastest layout that fits, or null; and the least memory per rank of any layout. */
export function best(
  machine: Machine,
  model: Model,
  ranks: number,
  { stages, numbers = ownNumbers(model) }: { stages: boolean; numbers?: Numbers },
): { choice: Choice | null; least: number } {
  const all = layoutsOf(model, ranks, stages).map((layout) => choiceOf(machine, model, layout, numbers))
  const fitting = all.filter(({ memory }) => memory <= machine.capacity)
  const [choice = null] = fitting.sort(
    (a, b) => a.seconds / tokensOf(model, a.layout) - b.seconds / tokensOf(model, b.layout),
  )
  return { choice, least: Math.min(...all.map(({ memory }) => memory)) }
}
