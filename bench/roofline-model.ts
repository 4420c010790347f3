import { isGemm, type Work } from './roofline-work.js'

/**
 * How long a GPU would take for what the emulator has counted. A model, not a measurement: docs/cuda.md says what it
 * leaves out.
 */

export interface Gpu {
  name: string
  /** Bytes per second of its memory and of its L2 cache, and the bytes that this cache holds. */
  memory: number
  cache: number
  cacheBytes: number
  /** FLOP/s in float32, in float64, and of tensor cores with bf16 (T4: f16) operands and float32 sums. */
  f32: number
  f64: number
  low: number
  multiprocessors: number
  /** Hertz, of a GPU under load. */
  clock: number
}

/** Data sheets; the bandwidths of L2 caches from published microbenchmarks. */
export const gpus: readonly Gpu[] = [
  {
    ...{ name: 'H100', memory: 3.35e12, cache: 5.5e12, cacheBytes: 50e6, f32: 67e12, f64: 34e12, low: 989e12 },
    ...{ multiprocessors: 132, clock: 1.755e9 },
  },
  {
    ...{ name: 'A100', memory: 2.04e12, cache: 4.5e12, cacheBytes: 40e6, f32: 19.5e12, f64: 9.7e12, low: 312e12 },
    ...{ multiprocessors: 108, clock: 1.41e9 },
  },
  {
    ...{ name: 'RTX 4090', memory: 1.01e12, cache: 5e12, cacheBytes: 72e6, f32: 82.6e12, f64: 1.29e12, low: 165e12 },
    ...{ multiprocessors: 128, clock: 2.52e9 },
  },
  {
    ...{ name: 'T4', memory: 0.32e12, cache: 1.27e12, cacheBytes: 4e6, f32: 8.1e12, f64: 0.253e12, low: 65e12 },
    ...{ multiprocessors: 40, clock: 1.59e9 },
  },
]

/** Threads for which a multiprocessor issues an instruction in each cycle: four warps. */
const issueWidth = 128

/**
 * Fractions of the data sheet that good kernels reach. `grouped` is the part of the rate of a strided-batched GEMM that
 * cublasGemmGroupedBatchedEx reaches, which has no warpgroup instructions; `capacity` is the part of the L2 cache that
 * one launch has.
 */
export const reached = { memory: 0.9, vector: 0.85, low: 0.7, grouped: 0.6, issue: 0.75, capacity: 0.8 }

/** Seconds between a kernel and the next, and so the least that one takes. */
export const launchSeconds = 2e-6

/** Seconds for which the GPU has no work when the host waits for a copy: the copy, and the launches after it. */
export const waitSeconds = 15e-6

/**
 * Seconds per read of a thread of the router's kernels, whose threads wait for one read before the next, because the
 * second depends on the first; `choose` reads a row of x, or of the logits, several reads at a time.
 */
export const secondsPerRead: Record<string, number> = { choose: 0.1e-6, scan: 0.4e-6, find_slots: 0.4e-6 }

/** Rows and columns of the result of a GEMM that one multiprocessor computes at a time. */
const tile = 128

/**
 * Bytes from and to memory. What a launch reads of an allocation that fits the L2 cache, it reads once; all that it reads
 * again of a larger one comes from memory again: a pass over x for one expert evicts what that for the next one needs.
 */
export function memoryBytes(gpu: Gpu, { reads, write }: Work): number {
  const fits = gpu.cacheBytes * reached.capacity
  return reads.reduce((bytes, [distinct, moved]) => bytes + (distinct > fits ? moved : distinct), write)
}

/** A single GEMM has the GPU to itself, and its last wave of tiles may fill only some multiprocessors. */
function filled(gpu: Gpu, { kind, sizes }: Work): number {
  if (kind !== 'single' || !sizes) return 1
  const tiles = Math.ceil(sizes.m / tile) * Math.ceil(sizes.n / tile)
  return tiles / (Math.ceil(tiles / gpu.multiprocessors) * gpu.multiprocessors)
}

/** FLOP/s of a GEMM in one strided-batched call. */
const gemmRate = (gpu: Gpu, { lowPrecision }: Work): number =>
  lowPrecision ? gpu.low * reached.low : gpu.f32 * reached.vector

/** Nothing hides the launch of a single GEMM: those of one expert each follow each other. */
function gemmSeconds(gpu: Gpu, work: Work): number {
  const { kind, flops, lowPrecision } = work
  const part = !lowPrecision ? 1 : kind === 'grouped' ? reached.grouped : filled(gpu, work)
  return flops / (gemmRate(gpu, work) * part) + (kind === 'single' ? launchSeconds : 0)
}

/** Possible limits of a launch, and the seconds that each would take alone. */
export function limitsOn(gpu: Gpu, work: Work): Record<string, number> {
  if (work.kind === 'wait') return { wait: waitSeconds }
  const memory = memoryBytes(gpu, work) / (gpu.memory * reached.memory)
  if (isGemm(work)) return { arithmetic: gemmSeconds(gpu, work), memory, launch: launchSeconds }
  // The data sheet counts an instruction as two FLOPs: a product and a sum.
  const arithmetic = Math.max((2 * work.issued) / gpu.f32, (2 * work.issued64) / gpu.f64) / reached.vector
  const issue = work.instructions / (gpu.multiprocessors * issueWidth * gpu.clock * reached.issue)
  const latency = launchSeconds + work.longest * (secondsPerRead[work.name] ?? 0)
  return { arithmetic, issue, memory, L2: work.moved / gpu.cache, launch: launchSeconds, latency }
}

export const secondsOn = (gpu: Gpu, work: Work): number => Math.max(...Object.values(limitsOn(gpu, work)))

/** What was counted of one pass. */
export interface Pass {
  shape: string
  pass: string
  /** Experts of the layer; undefined for a whole model. */
  experts?: number
  works: readonly Work[]
}

/** Whether a work is a GEMM of the experts; of a whole model, any GEMM. The router's has a column for each expert. */
export function isExpertGemm({ experts }: Pass, work: Work): boolean {
  if (!isGemm(work)) return false
  const { kind, sizes, lowPrecision } = work
  const ofRouter = kind === 'single' && !lowPrecision && sizes && Object.values(sizes).includes(experts ?? -1)
  return !ofRouter
}

export const total = <T>(works: readonly T[], value: (work: T) => number): number =>
  works.reduce((sum, work) => sum + value(work), 0)

export const passSeconds = (gpu: Gpu, { works }: Pass): number => total(works, (work) => secondsOn(gpu, work))

/** Seconds of the experts' GEMMs alone, each at the rate of a strided-batched call. */
export const gemmsAlone = (gpu: Gpu, pass: Pass): number =>
  total(
    pass.works.filter((work) => isExpertGemm(pass, work)),
    (work) => secondsOn(gpu, { ...work, kind: 'strided' }),
  )

/** The time of all over the time of the GEMMs alone. */
export const ratioOn = (gpu: Gpu, pass: Pass): number => passSeconds(gpu, pass) / gemmsAlone(gpu, pass)

/** Bytes from and to memory, except the operands and results of the experts' GEMMs, by the name of the launch. */
export function lostBytes(gpu: Gpu, pass: Pass): { name: string; bytes: number }[] {
  const lost = new Map<string, number>()
  for (const work of pass.works)
    if (!isExpertGemm(pass, work)) lost.set(work.name, (lost.get(work.name) ?? 0) + memoryBytes(gpu, work))
  return [...lost].map(([name, bytes]) => ({ name, bytes })).sort((a, b) => b.bytes - a.bytes)
}
