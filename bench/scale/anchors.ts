import { best, type Choice, mixedNumbers, tokensOf } from './layout.js'
import { fittedUtilization, type gpusOf, megatron, utilizationOf } from './machines.js'
import { allReduce, allReduceBytes, allToAll, byNode, direct, groupOf, type Machine, nodesVisited } from './model.js'
import { deepSeek, type Model, qwen, tokenFlops } from './models.js'

/** A published figure, and what the model says. */
export interface Anchor {
  what: string
  source: string
  unit: string
  published: number
  model: number
  /** The model was fitted to it, so it shows nothing. */
  isFitted?: boolean
  /** What the figure does not say and the model assumes. */
  assumed?: string
}

export type Gpus = ReturnType<typeof gpusOf>

const bus = (machine: Machine, ranks: number, bytes: number): number =>
  allReduceBytes(bytes, ranks) / allReduce(machine, groupOf(machine, ranks), bytes) / 1e9

/** DeepEP's rows: 7168 numbers, for 8 of 256 experts. FP8 has a float32 scale for each 128. */
const row = { fp8: 7168 + (7168 / 128) * 4, bf16: 7168 * 2 }

/**
 * GB/s as DeepEP's test programs count: rows that nodes (inside a node: ranks) get, those of the own one included, over the time.
 * A row is sent once to each of at most four nodes.
 */
function counted(machine: Machine, ranks: number, tokens: number, bytes: number): number {
  const group = groupOf(machine, ranks)
  const nodes = nodesVisited(ranks / group.perNode, 8, 4)
  const copies = nodesVisited(ranks, 8)
  const passed = tokens * bytes * copies
  if (ranks === group.perNode) return passed / direct(machine, group, passed) / 1e9
  return (tokens * bytes * nodes) / byNode(machine, group, passed, { once: nodes / copies, pipelined: true }) / 1e9
}

/** Microseconds of 128 tokens, straight to the rank of each expert. */
const latency = (machine: Machine, ranks: number, bytes: number): number =>
  direct(machine, groupOf(machine, ranks), 128 * 8 * bytes) * 1e6

function deepEp({ h100, h800, gb200 }: Gpus): Anchor[] {
  const source = 'DeepEP, docs/legacy.md'
  const published = [
    [8, 153, 158],
    [16, 43, 43],
    [32, 58, 57],
    [64, 51, 50],
  ]
  const latencies = [
    [8, 77, 114],
    [64, 173, 314],
    [256, 194, 360],
  ]
  const both = (what: string, unit: string, dispatch: number, combine: number, of: (bytes: number) => number) => [
    { what: `${what}: dispatch`, source, unit, published: dispatch, model: of(row.fp8) },
    { what: `${what}: combine`, source, unit, published: combine, model: of(row.bf16) },
  ]
  const v2 = { source: 'DeepEP, README', unit: 'GB/s' }
  const newer: [number, number, number][] = [
    [16, 90, 81],
    [32, 61, 61],
  ]
  return [
    ...published.flatMap(([ranks, dispatch, combine]) =>
      both(`H800, ${ranks} ranks, 4,096 tokens`, 'GB/s', dispatch, combine, (bytes) =>
        counted(h800, ranks, 4096, bytes),
      ).map((each) => ({ ...each, isFitted: ranks === 8 })),
    ),
    ...latencies.flatMap(([ranks, dispatch, combine]) =>
      both(`H800, ${ranks} ranks, 128 tokens`, 'µs', dispatch, combine, (bytes) => latency(h800, ranks, bytes)),
    ),
    ...newer.flatMap(([ranks, dispatch, combine]) => [
      {
        ...v2,
        what: `H100, ${ranks} ranks, 8,192 tokens: dispatch`,
        published: dispatch,
        model: counted(h100, ranks, 8192, row.fp8),
      },
      {
        ...v2,
        what: `H100, ${ranks} ranks, 8,192 tokens: combine`,
        published: combine,
        model: counted(h100, ranks, 8192, row.bf16),
      },
    ]),
    {
      ...v2,
      what: 'Blackwell, 8 ranks, 8,192 tokens: dispatch',
      published: 726,
      model: counted(gb200, 8, 8192, row.fp8),
      isFitted: true,
    },
    {
      ...v2,
      what: 'Blackwell, 8 ranks, 8,192 tokens: combine',
      published: 740,
      model: counted(gb200, 8, 8192, row.bf16),
      isFitted: true,
    },
  ]
}

const tutelLayer = { tokens: 16384, dim: 2048, hidden: 2048, topK: 2, element: 2 }

/**
 * Seconds of Tutel's layer and of Fairseq's, forward and backward: the same plain experts; Fairseq multiplies by one-hot tensors
 * [tokens, slots] to dispatch and combine (GShard, arXiv 2006.16668) and sends straight.
 */
export function tutelSeconds(machine: Machine, ranks: number): [tutel: number, fairseq: number] {
  const { tokens, dim, hidden, topK, element } = tutelLayer
  const rows = tokens * topK
  const experts = (12 * rows * dim * hidden) / machine.rate
  const oneHot = (2 * 3 * 2 * tokens * rows * dim) / machine.rate
  const group = groupOf(machine, ranks)
  const bytes = rows * dim * element
  const [flexible, straight] = [allToAll(machine, group, bytes), direct(machine, group, bytes)].map((each) => 4 * each)
  return [Math.max(experts, flexible), experts + oneHot + straight]
}

/** The most by which an all-to-all by node is faster than a direct one, over sizes. */
function mostByNode(machine: Machine, ranks: number): number {
  const group = groupOf(machine, ranks)
  const sizes = Array.from({ length: 20 }, (_, i) => 2 ** (10 + i))
  return Math.max(...sizes.map((bytes) => direct(machine, group, bytes) / byNode(machine, group, bytes)))
}

function tutel({ a100 }: Gpus): Anchor[] {
  const common = { source: 'Tutel, arXiv 2206.03382', unit: '×' }
  const { tokens, dim, hidden } = tutelLayer
  const assumed = `${tokens.toLocaleString('en')} tokens a GPU, ${dim} × ${hidden}, top-2, float16`
  const ratio = (ranks: number) => {
    const [ours, theirs] = tutelSeconds(a100, ranks)
    return theirs / ours
  }
  return [
    { ...common, what: 'a layer vs. Fairseq, 16 A100', published: 4.96, model: ratio(16), assumed },
    { ...common, what: 'a layer vs. Fairseq, 2,048 A100', published: 5.75, model: ratio(2048), assumed },
    {
      ...common,
      what: '2-D vs. direct all-to-all, 2,048 A100, at most',
      published: 20.7,
      model: mostByNode(a100, 2048),
    },
  ]
}

/** The best layout of a published run, with stages and overlap. */
function published(machine: Machine, model: Model, ranks: number): Choice {
  const { choice } = best(machine, model, ranks, { stages: true, numbers: mixedNumbers })
  if (!choice) throw new Error(`${model.name} does not fit ${ranks} ${machine.name}`)
  return choice
}

const tokensPerSecond = (machine: Machine, model: Model, ranks: number): number => {
  const { layout, seconds } = published(machine, model, ranks)
  return tokensOf(model, layout) / seconds / ranks
}

const teraflops = (machine: Machine, model: Model, ranks: number): number =>
  (tokensPerSecond(machine, model, ranks) * tokenFlops(model, model.topK)) / 1e12

/** Percent of a step in which rows travel, if nothing overlaps. */
function exchangePart(machine: Machine): number {
  const { rows, compute, gradients, update, stages } = published(machine, deepSeek, 1024).step
  return (100 * rows) / (rows + compute + gradients + update + stages)
}

function training({ h100, h800, h800fp8, gb200, gb300 }: Gpus): Anchor[] {
  const core = { source: 'Megatron-Core, arXiv 2504.14960', unit: '% MFU' }
  const newer = { source: 'Megatron-Core MoE, arXiv 2603.07685', unit: 'TFLOP/s a GPU' }
  const assumed = '256 GPUs, FP8 in every GEMM'
  return [
    {
      ...{ ...core, what: 'Mixtral 8×22B, 128 H100', published: 100 * fittedUtilization, isFitted: true },
      ...{
        model: 100 * utilizationOf(h100, megatron),
        assumed: '256 sequences of 4,096 a step, no tensor parallelism',
      },
    },
    {
      ...{ ...core, what: 'Qwen2-57B-A14B, 64 H100', published: 39 },
      ...{
        model: 100 * utilizationOf(h100, { model: qwen, ranks: 64 }),
        assumed: '64 GPUs, 256 sequences of 4,096 a step',
      },
    },
    { ...newer, what: 'DeepSeek-V3, GB300', published: 1233, model: teraflops(gb300, deepSeek, 256), assumed },
    { ...newer, what: 'DeepSeek-V3, GB200', published: 1048, model: teraflops(gb200, deepSeek, 256), assumed },
    {
      ...{ what: 'DeepSeek-V3: part of exchanges in a step without overlap', source: newer.source, unit: '%' },
      ...{ published: 40, model: exchangePart(h800), assumed: '1,024 H800, bf16; published: 20–60' },
    },
    {
      ...{
        what: 'DeepSeek-V3, 2,048 H800',
        source: 'DeepSeek-V3, arXiv 2412.19437, table 1: 2.664 M hours for 14.8 T tokens',
      },
      ...{ unit: 'tokens/s a GPU', published: 14.8e12 / (2.664e6 * 3600) },
      ...{ model: tokensPerSecond(h800fp8, deepSeek, 2048), assumed: 'FP8 in every GEMM' },
    },
  ]
}

function links({ h100 }: Gpus, here: Machine): Anchor[] {
  const before = { source: 'an earlier run of this project', unit: 'GB/s' }
  const size = 2 ** 26
  const pair = groupOf(here, 2)
  return [
    {
      ...{ what: 'all-reduce, 8 × H100', source: 'Alaya NeW, "NCCL-tests in practice" (2026)', unit: 'GB/s' },
      ...{ published: 470, model: bus(h100, 8, 2 ** 33), isFitted: true, assumed: '8 GiB; published: 460–480' },
    },
    {
      ...{
        what: 'all-reduce, H100 nodes with NDR',
        source: 'Saturn Cloud, "Validating Multi-Node GPU Clusters"',
        unit: 'GB/s',
      },
      ...{ published: 425, model: bus(h100, 32, 2 ** 33), assumed: '4 nodes, 8 GiB; published: 400–450' },
    },
    {
      ...{
        what: 'part of the nominal bandwidth of a network, EFA',
        source: 'a series on libfabric and EFA (2024)',
        unit: '%',
      },
      ...{ published: 97, model: (100 * h100.between.bandwidth) / 50e9, assumed: 'that of NDR' },
    },
    {
      ...{ what: '40 GbE by kernel bypass', source: 'Cisco, "MPI over 40Gb Ethernet"', unit: 'Gb/s' },
      ...{ published: 37.2, model: (8 * here.between.bandwidth) / 1e9, isFitted: true },
    },
    {
      ...before,
      what: 'here, all-reduce of 64 MiB',
      published: 0.67,
      model: size / allReduce(here, pair, size) / 1e9,
      assumed: 'bytes of the tensor over the time; busy cores',
    },
    {
      ...before,
      what: 'here, all-to-all of 64 MiB',
      published: 1.7,
      model: size / allToAll(here, pair, size) / 1e9,
      assumed: 'the same',
    },
    {
      ...before,
      what: 'here, all-reduce of 4 KiB',
      unit: 'µs',
      published: 8,
      model: allReduce(here, pair, 4096) * 1e6,
    },
  ]
}

/** Every published figure. `here` is the machine that was measured. */
export const anchorsOf = (gpus: Gpus, here: Machine): Anchor[] => [
  ...links(gpus, here),
  ...deepEp(gpus),
  ...tutel(gpus),
  ...training(gpus),
]
