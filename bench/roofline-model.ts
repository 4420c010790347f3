import { digits, markdownTable } from './table.js'

/**
 * How long a GPU would take for what the emulator has counted (test/native/simt/emulator/counting.h), if memory and
 * arithmetic alone limited it. A model, not a measurement: docs/cuda.md says what it leaves out.
 */

export interface Gpu {
  name: string
  /** Bytes per second of its memory and of its L2 cache. */
  memory: number
  cache: number
  /** FLOP/s in float32, in float64, and of tensor cores with bf16 (T4: f16) operands and float32 sums. */
  f32: number
  f64: number
  low: number
}

/** Data sheets; the L2 caches from published microbenchmarks. */
export const gpus: readonly Gpu[] = [
  { name: 'H100', memory: 3.35e12, cache: 5.5e12, f32: 67e12, f64: 34e12, low: 989e12 },
  { name: 'A100', memory: 2.04e12, cache: 4.5e12, f32: 19.5e12, f64: 9.7e12, low: 312e12 },
  { name: 'RTX 4090', memory: 1.01e12, cache: 5e12, f32: 82.6e12, f64: 1.29e12, low: 165e12 },
  { name: 'T4', memory: 0.32e12, cache: 1.27e12, f32: 8.1e12, f64: 0.253e12, low: 65e12 },
]

/** Of the data sheet: what good kernels reach. */
export const reached = { memory: 0.9, vector: 0.85, low: 0.7 }

/** Seconds between a kernel and the next, and so the least that one takes. */
export const launchSeconds = 2e-6

/** A line of the emulator. */
type Line =
  | (Record<Count, number> & Partial<Record<Arithmetic, number>> & { kernel: string })
  | { gemm: string; m: number; n: number; k: number; count: number; flops: number; bytes: number }
  | { gemm: string; groups: number; flops: number; bytes: number }
  | { copy: true; read: number; write: number }
  | { fill: true; read: number; write: number }

type Count =
  | 'blocks'
  | 'read'
  | 'readSectors'
  | 'readDistinct'
  | 'write'
  | 'writeSectors'
  | 'writeDistinct'
  | 'wavefronts'
  | 'fewestWavefronts'
  | 'barriers'

/** Not there if the emulator was built without the plugin that counts it. */
type Arithmetic = 'flops' | 'issued' | 'issued64'

/** One or more equal launches of a kernel, a GEMM, or a fill of memory. */
export interface Work {
  name: string
  isGemm: boolean
  launches: number
  /** Of memory, if every sector is read and written once. */
  bytes: number
  /** Of the sectors of all accesses. */
  moved: number
  /** What the lanes ask for, of what is moved. */
  efficiency: number
  /** Wavefronts of shared memory, of the fewest possible. */
  conflicts: number
  flops: number
  /** Instructions that compute in float32 and in float64, of all threads; 0 of GEMMs. */
  issued: number
  issued64: number
  lowPrecision: boolean
}

const sector = 32

/** Kernels that run a functor, which then has the name. */
const wrappers = /^(?:rows|by_warp|vectors|elementwise)_kernel</
const lastNames = /^rows_and_columns_kernel<.*\b([A-Za-z_]\w*)<[^<>]*> ?>\(/

/** `st_moe::cuda::rows_kernel<256, st_moe::cuda::Activate<float, …> >(…)` → `Activate`. */
export function kernelName(signature: string): string {
  const plain = signature.replaceAll(/st_moe::(?:cuda::)?|\(anonymous namespace\)::/g, '').replace(/^void /, '')
  const functor = wrappers.test(plain)
    ? /<(?:\d+, )?(?:Fills<)?([A-Za-z_]\w*)/.exec(plain)?.[1]
    : lastNames.exec(plain)?.[1]
  return functor ?? plain.replace(/[<(].*$/s, '').replace(/_kernel$/, '')
}

const sizes = ({ m, n, k, count }: Record<'m' | 'n' | 'k' | 'count', number>) =>
  `${count > 1 ? `${count} × ` : ''}${m} × ${n} × ${k}`

function workOf(line: Line): Work | null {
  const one = {
    isGemm: false,
    launches: 1,
    efficiency: 1,
    conflicts: 1,
    flops: 0,
    issued: 0,
    issued64: 0,
    lowPrecision: false,
  }
  if ('gemm' in line) {
    const { gemm, flops, bytes } = line
    const name = `GEMM ${'groups' in line ? `of ${line.groups} groups` : sizes(line)}, ${gemm}`
    return { ...one, name, isGemm: true, bytes, moved: bytes, flops, lowPrecision: /^b?f16/.test(gemm) }
  }
  if ('kernel' in line) {
    const moved = sector * (line.readSectors + line.writeSectors)
    return {
      ...one,
      name: kernelName(line.kernel),
      bytes: line.readDistinct + line.writeDistinct,
      moved,
      efficiency: moved > 0 ? (line.read + line.write) / moved : 1,
      conflicts: line.wavefronts > 0 ? line.wavefronts / line.fewestWavefronts : 1,
      flops: line.flops ?? 0,
      issued: line.issued ?? 0,
      issued64: line.issued64 ?? 0,
    }
  }
  if ('fill' in line) return { ...one, name: 'fill', bytes: line.write, moved: line.write }
  return null // copies are between host and device
}

export const readWork = (text: string): Work[] =>
  text
    .split('\n')
    .filter((line) => line !== '')
    .flatMap((line) => workOf(JSON.parse(line)) ?? [])

// Of the data sheet's FLOP/s, each instruction is two: a product and a sum.
function arithmeticSeconds(gpu: Gpu, { isGemm, lowPrecision, flops, issued, issued64 }: Work): number {
  if (lowPrecision) return flops / (gpu.low * reached.low)
  const seconds = isGemm ? flops / gpu.f32 : Math.max((2 * issued) / gpu.f32, (2 * issued64) / gpu.f64)
  return seconds / reached.vector
}

export const secondsOn = (gpu: Gpu, work: Work): number =>
  Math.max(
    arithmeticSeconds(gpu, work),
    work.bytes / (gpu.memory * reached.memory),
    work.isGemm ? 0 : work.moved / gpu.cache,
    work.launches * launchSeconds,
  )

const total = (works: readonly Work[], value: (work: Work) => number): number =>
  works.reduce((sum, work) => sum + value(work), 0)

/** The time of all over the time of the GEMMs alone. */
export const ratioOn = (gpu: Gpu, works: readonly Work[]): number =>
  total(works, (work) => secondsOn(gpu, work)) /
  total(
    works.filter(({ isGemm }) => isGemm),
    (work) => secondsOn(gpu, work),
  )

export const launchesOf = (works: readonly Work[]): number =>
  total(
    works.filter(({ isGemm }) => !isGemm),
    ({ launches }) => launches,
  )

/** What was counted of one pass. */
export interface Pass {
  shape: string
  pass: string
  works: readonly Work[]
}

const time = (seconds: number): string =>
  seconds < 1e-3 ? `${(seconds * 1e6).toFixed(0)} µs` : `${(seconds * 1e3).toPrecision(3)} ms`

/** A row for each pass: launches, and per GPU the time and what the GEMMs alone take of it. */
export const summary = (passes: readonly Pass[]): string =>
  markdownTable(
    ['shape', 'pass', 'launches + GEMMs', ...gpus.map(({ name }) => `${name}: time, × GEMMs`)],
    passes.map(({ shape, pass, works }) => {
      const gemms = works.filter(({ isGemm }) => isGemm).length
      const on = (gpu: Gpu): string => {
        const all = time(total(works, (work) => secondsOn(gpu, work)))
        return gemms > 0 ? `${all}, ${ratioOn(gpu, works).toFixed(2)}` : all
      }
      return [shape, pass, `${launchesOf(works)}${gemms > 0 ? ` + ${gemms}` : ''}`, ...gpus.map(on)]
    }),
  )

/** Equal launches in one row. */
function merged(works: readonly Work[]): Work[] {
  const rows = new Map<string, Work>()
  for (const work of works) {
    const before = rows.get(work.name)
    if (!before) {
      rows.set(work.name, work)
      continue
    }
    const moved = before.moved + work.moved
    rows.set(work.name, {
      ...before,
      launches: before.launches + work.launches,
      bytes: before.bytes + work.bytes,
      moved,
      efficiency: moved > 0 ? (before.efficiency * before.moved + work.efficiency * work.moved) / moved : 1,
      conflicts: Math.max(before.conflicts, work.conflicts),
      flops: before.flops + work.flops,
      issued: before.issued + work.issued,
      issued64: before.issued64 + work.issued64,
    })
  }
  return [...rows.values()]
}

const gigaflops = (flops: number): string => (flops === 0 ? '' : flops < 1e6 ? '< 0.001' : digits(flops / 1e9))
const megabytes = (bytes: number): string => digits(bytes / 1e6)

/** A row for each kernel and GEMM of a pass. */
export const launchTable = ({ works }: Pass, gpu: Gpu): string =>
  markdownTable(
    ['launch', 'times', 'GFLOP', 'MB', 'MB moved', 'of it used', 'bank conflicts', gpu.name],
    merged(works).map((work) => [
      work.name,
      String(work.launches),
      gigaflops(work.flops),
      megabytes(work.bytes),
      work.isGemm ? '' : megabytes(work.moved),
      work.isGemm ? '' : work.efficiency.toFixed(2),
      work.conflicts > 1 ? `${work.conflicts.toFixed(2)}×` : '',
      time(secondsOn(gpu, work)),
    ]),
  )
