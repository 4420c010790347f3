import { readFileSync } from 'node:fs'
import { plainName } from './kernel-names.mjs'

/** A line of the emulator for a launch, GEMM, copy or fill (test/native/simt/emulator/counting.h). */
type Line =
  | (Record<Count, number> & Partial<Record<Arithmetic, number>> & { kernel: string; reads: Read[] })
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
  | 'longest'

/** Of an allocation: the bytes of the sectors that a launch reads, each once, and of all accesses. */
export type Read = readonly [distinct: number, moved: number]

/** Not there if the emulator was built without the plugin that counts it. */
type Arithmetic = 'flops' | 'issued' | 'issued64'

/** The sizes of a GEMM, in cuBLAS's order. */
export interface Sizes {
  m: number
  n: number
  k: number
}

/** A launch of a kernel, a GEMM, a fill of memory, or a wait of the host for a copy. */
export interface Work {
  name: string
  /** strided: one call for all experts, with equal sizes; grouped: one call, with sizes of their own; single: one matrix. */
  kind: 'kernel' | 'strided' | 'grouped' | 'single' | 'fill' | 'wait'
  sizes?: Sizes
  /** What it reads of each allocation. */
  reads: readonly Read[]
  /** Bytes of the sectors that are read and written, each once, and of all accesses. */
  read: number
  write: number
  moved: number
  /** Fraction of the moved bytes that the lanes ask for. */
  efficiency: number
  /** Wavefronts of shared memory, of the fewest possible. */
  conflicts: number
  flops: number
  /** Instructions of all threads that compute in float32 and in float64; 0 of GEMMs. */
  issued: number
  issued64: number
  /** All instructions of all threads, if the machine code of the kernel was counted; else 0. */
  instructions: number
  /** Reads of one thread, at most. */
  longest: number
  lowPrecision: boolean
}

export const isGemm = ({ kind }: Work): boolean => kind === 'strided' || kind === 'grouped' || kind === 'single'

const sector = 32

/** The machine code of kernels by name: a loop's instructions, and the bytes that a thread reads and writes in it. */
type Code = Record<string, { instructions: number; read: number; write: number }>

/** The hot kernels, as `scripts/cuda-kernels.mjs --write` has counted them. */
const hotCode: Code = JSON.parse(readFileSync(new URL('cuda/instructions.json', import.meta.url), 'utf8')).kernels

/** By what a loop reads or what it writes, whichever makes more of its rounds. */
export function instructionsOf(
  { kernel, read, write }: { kernel: string; read: number; write: number },
  code = hotCode,
): number {
  const loop = code[plainName(kernel)]
  if (!loop) return 0
  const rounds = [loop.read > 0 ? read / loop.read : 0, loop.write > 0 ? write / loop.write : 0]
  return loop.instructions * Math.max(...rounds)
}

/** Kernels that run a functor, which then has the name. */
const wrappers = /^(?:rows|by_warp|vectors|elementwise)_kernel</
const lastNames = /^rows_and_columns_kernel<.*\b([A-Za-z_]\w*)<[^<>]*>>$/

/** `st_moe::cuda::rows_kernel<256, st_moe::cuda::Activate<float, …> >(…)` → `Activate`. */
export function kernelName(signature: string): string {
  const plain = plainName(signature)
  const functor = wrappers.test(plain)
    ? /<(?:\d+, )?(?:Fills<)?([A-Za-z_]\w*)/.exec(plain)?.[1]
    : lastNames.exec(plain)?.[1]
  return functor ?? plain.replace(/<.*$/s, '').replace(/_kernel$/, '')
}

const sizesText = ({ m, n, k }: Sizes): string => `${m} × ${n} × ${k}`

function gemmOf(line: Extract<Line, { gemm: string }>): Partial<Work> {
  const { gemm, flops, bytes } = line
  // Reads and writes of a GEMM are not told apart: nothing depends on it.
  const one = {
    ...{ read: bytes, reads: [[bytes, bytes]] as const, moved: bytes },
    flops,
    lowPrecision: /^b?f16/.test(gemm),
  }
  if ('groups' in line) return { ...one, kind: 'grouped', name: `GEMM of ${line.groups} groups, ${gemm}` }
  const { m, n, k, count } = line
  const name = `GEMM ${count > 1 ? `${count} × ` : ''}${sizesText(line)}, ${gemm}`
  return { ...one, kind: count > 1 ? 'strided' : 'single', name, sizes: { m, n, k } }
}

function kernelOf(line: Extract<Line, { kernel: string }>): Partial<Work> {
  const moved = sector * (line.readSectors + line.writeSectors)
  return {
    name: kernelName(line.kernel),
    read: line.readDistinct,
    write: line.writeDistinct,
    reads: line.reads,
    moved,
    efficiency: moved > 0 ? (line.read + line.write) / moved : 1,
    conflicts: line.wavefronts > 0 ? line.wavefronts / line.fewestWavefronts : 1,
    flops: line.flops ?? 0,
    issued: line.issued ?? 0,
    issued64: line.issued64 ?? 0,
    instructions: instructionsOf(line),
    longest: line.longest,
  }
}

const nothing: Work = {
  ...{ name: '', kind: 'kernel', reads: [], read: 0, write: 0, moved: 0, efficiency: 1, conflicts: 1, flops: 0 },
  ...{ issued: 0, issued64: 0, instructions: 0, longest: 0, lowPrecision: false },
}

function workOf(line: Line): Work | null {
  if ('gemm' in line) return { ...nothing, ...gemmOf(line) }
  if ('kernel' in line) return { ...nothing, ...kernelOf(line) }
  if ('fill' in line) return { ...nothing, name: 'fill', kind: 'fill', write: line.write, moved: line.write }
  return line.read > 0 ? { ...nothing, name: 'wait for the host', kind: 'wait' } : null
}

/** Copies to the host that follow each other are one wait; of those to the device none waits. */
export function readWork(text: string): Work[] {
  const works = text
    .split('\n')
    .filter((line) => line !== '')
    .flatMap((line) => workOf(JSON.parse(line)) ?? [])
  return works.filter(({ kind }, i) => kind !== 'wait' || works[i - 1]?.kind !== 'wait')
}
