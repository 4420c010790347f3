import { best, mixedNumbers, utilization } from './layout.js'
import type { Machine } from './model.js'
import { mixtral } from './models.js'

/** Machines that this project has not run on, by their data sheets and by published measurements. */

/** Memory bandwidth that kernels reach of the data sheet's: bench/roofline-model.ts. */
const reachedMemory = 0.9
/** Of a GPU's memory, the part that a program's tensors may take. */
const usable = 0.92
/** Seconds of a message, and to the next: assumed, with DeepEP's latencies in sight. */
export const messages = { inside: 5e-6, between: 10e-6, gap: 0.2e-6 }

interface Sheet {
  name: string
  node: number
  /** Bytes per second one way: inside a node, between nodes. */
  inside: number
  between: number
  peak: number
  memory: number
  bytes: number
}

/** Sources of the figures are in the table of machines in docs/scaling.md, from {@link sources}. */
const sheets = {
  h100: { name: 'H100', node: 8, inside: 470e9, between: 45e9, peak: 989e12, memory: 3.35e12, bytes: 80e9 },
  h800: { name: 'H800', node: 8, inside: 136e9, between: 45e9, peak: 989e12, memory: 3.35e12, bytes: 80e9 },
  h800fp8: { name: 'H800, FP8', node: 8, inside: 136e9, between: 45e9, peak: 1979e12, memory: 3.35e12, bytes: 80e9 },
  a100: { name: 'A100', node: 8, inside: 235e9, between: 22.5e9, peak: 312e12, memory: 2.04e12, bytes: 80e9 },
  gb200: { name: 'GB200, FP8', node: 72, inside: 641e9, between: 45e9, peak: 5000e12, memory: 8e12, bytes: 186e9 },
  gb300: { name: 'GB300, FP8', node: 72, inside: 641e9, between: 90e9, peak: 5000e12, memory: 8e12, bytes: 279e9 },
} as const satisfies Record<string, Sheet>

/** Where the figures of {@link sheets} are from. */
export const sources: Readonly<Record<keyof typeof sheets, string>> = {
  h100: 'NVLink: NCCL all-reduce on 8 × H100, 460–480 GB/s (Alaya NeW, 2026); NDR 50 GB/s nominal, 45 as DeepEP reaches',
  h800: 'DeepEP, docs/legacy.md: 153 and 158 GB/s inside a node, of which 1/8 stays on the rank; between nodes 45 of 50 GB/s',
  h800fp8: 'as H800, with the FP8 rate of the data sheet',
  a100: 'data sheet: NVLink 300 GB/s one way, HDR 25 GB/s; 0.78 and 0.9 of them, as on H100 and H800',
  gb200:
    'NVLink of 72 GPUs: DeepEP, README: 726 and 740 GB/s on 8, of which 1/8 stays on the rank; the rest from the data sheet',
  gb300: 'as GB200, with the memory and the 800 Gb/s network of its data sheet',
}

const machineOf = ({ name, node, inside, between, peak, memory, bytes }: Sheet, efficiency: number): Machine => ({
  ...{ name, node, peak, rate: peak * efficiency, memory: memory * reachedMemory, capacity: bytes * usable },
  inside: { latency: messages.inside, gap: messages.gap, bandwidth: inside },
  between: { latency: messages.between, gap: messages.gap, bandwidth: between },
  ...{ sums: 'ring', rows: 'by node', together: 1 },
})

/** MFU of Mixtral 8×22B on 128 H100 (Megatron-Core, arXiv 2504.14960): the one figure that the rate of GPUs is fitted to. */
export const fittedUtilization = 0.493

/** That run as the model sees it: 256 sequences a step on 128 GPUs (assumed). */
export const megatron = { model: { ...mixtral, batch: 256 }, ranks: 128 }

/** MFU of the best layout. */
export function utilizationOf(machine: Machine, { model, ranks }: typeof megatron): number {
  const { choice } = best(machine, model, ranks, { stages: true, numbers: mixedNumbers })
  return choice ? utilization(machine, model, choice.layout, choice.seconds) : 0
}

/** The part of the data sheet's rate that GEMMs reach, so that the MFU is {@link fittedUtilization}. By halving. */
export function fitEfficiency(): number {
  let [low, high] = [0, 1]
  for (let i = 0; i < 40; i++) {
    const middle = (low + high) / 2
    if (utilizationOf(machineOf(sheets.h100, middle), megatron) < fittedUtilization) low = middle
    else high = middle
  }
  return (low + high) / 2
}

/** All GPUs, with the same efficiency. */
export function gpusOf(efficiency: number): Record<keyof typeof sheets, Machine> {
  const names = Object.keys(sheets) as (keyof typeof sheets)[]
  const made = names.map((name) => [name, machineOf(sheets[name], efficiency)])
  return Object.fromEntries(made) as Record<keyof typeof sheets, Machine>
}

/**
 * Nodes like the one that was measured, joined by 40 Gb/s Ethernet with kernel bypass: 1.93 µs, 37.2 Gb/s (Cisco, "MPI over
 * 40Gb Ethernet").
 */
export const between = { latency: 1.93e-6, gap: 1.93e-6, bandwidth: 37.2e9 / 8 }

/** Memory per rank of the measured machine's nodes: assumed, and far more than the demo needs. */
export const nodeMemory = 4e9
