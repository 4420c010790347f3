import { loadAddon } from './addon.js'
import { MoeError, type MoeErrorCode, packageName } from './errors.js'
import { trimWhenIdle } from './idle-memory.js'
import { activationKind, binaryKind, nativeOps, unaryKind } from './native-ops.js'

/** A live native tensor: slot and generation in one number, with nothing for the garbage collector. */
export type Handle = number

/** The functions of the addon besides the declared ops. */
interface Addon {
  setErrorFactory(make: (code: string, op: string, text: string) => Error): void
  setThreads(threads: number): void
  getThreads(): number
  /** 0, or the number of the error: that of EAGAIN if another process holds the lock. */
  lockFile(file: number): number
  deviceInfo(device: number): { name: string; variant: string; hostMemory: boolean; prefersSlots: boolean }
  bf16DotSpeed(): number
  /** `name` is that of its devices, empty if the file is no plugin of this build. */
  probePlugin(path: string, folders: string): { name: string; devices: number; stage: string; reason: string }
  describeDevice(path: string, index: number): { variant: string; bytes: number; driver: string; reason: string }
  openDevice(path: string, index: number): number
  memory(device: number): [tensors: number, bytes: number, peakBytes: number, cachedBytes: number]
  resetPeak(device: number): void
  emptyCache(device: number): void
  /** Milliseconds until the next call; 0 if nothing is cached. */
  trimIdle(device: number): number
  /** 0 is no limit. */
  setMemoryLimit(device: number, bytes: number): void
  retain(handle: Handle): void
  release(handle: Handle): void
  unique(handle: Handle): boolean
  version(handle: Handle): number
  keepPacked(handle: Handle): void
  fromData(data: ArrayBufferView, dtype: number, shape: readonly number[], device: number): Handle
  toData(x: Handle, data: ArrayBufferView): void
  toDevice(x: Handle, device: number): Handle
  convert(x: Handle, dtype: number): Handle
  reshape(x: Handle, shape: readonly number[]): Handle
  reshapeOwned(x: Handle, shape: readonly number[]): Handle
  stridedRead(x: Handle, shape: readonly number[], strides: readonly number[], offset: number): Handle
  stridedWrite(target: Handle, x: Handle, strides: readonly number[], offset: number): void
  unaryKinds(): string[]
  binaryKinds(): string[]
  activations(): string[]
  binary(a: Handle, b: Handle, kind: number): Handle
  addInPlace(a: Handle, b: Handle): void
  reduce(x: Handle, split: readonly number[], shape: readonly number[], factor: number): Handle
  norm(xs: Float64Array, scale: number): Handle
  clipNorm(xs: Float64Array, norm: Handle, max: number): void

  matmul(a: Handle, b: Handle, transposeA: boolean, transposeB: boolean): Handle

  asyncBegin(): void
  asyncEnd(canAbort: boolean): Promise<boolean>
  asyncDrop(): void
  asyncCancel(): void
  isSettled(handle: Handle): boolean

  /** `reason` is empty if the MPI library can be used. */
  probeProcessLibrary(path: string): { version: string; reason: string }
  /** `timeout` in seconds; `expectedSize` 0 if the launcher has not announced it; `hosts` by rank, as numbers. */
  startProcessGroup(
    path: string,
    timeout: number,
    expectedSize: number,
    thread: string,
    call: string,
    debug: boolean,
  ): { group: number; rank: number; hosts: number[]; version: string }
  /** 0 for a rank that is none of `ranks`. */
  newProcessGroup(group: number, call: string, ranks: Float64Array): number
  processGroupBarrier(group: number): void
  destroyProcessGroups(): void

  captureBegin(device: number): void
  captureOutside(on: boolean): void
  captureEnd(keep: boolean): number | undefined
  replay(step: number, numbers: Float64Array): void
  releaseCapture(step: number): void
}

type Native = Addon & ReturnType<typeof nativeOps>

let file = ''

/** An addon that was built before a change of the lists would compute other functions than those asked for. */
function checkKinds(functions: Native, path: string): void {
  const pairs = [
    [functions.unaryKinds(), unaryKind],
    [functions.binaryKinds(), binaryKind],
    [functions.activations(), activationKind],
  ] as const
  if (pairs.every(([names, kinds]) => names.join() === Object.keys(kinds).join())) return
  const text = `${path} is of another build of st-moe than its JavaScript. To build it again, run: npx st-moe build`
  throw new MoeError('BACKEND_UNAVAILABLE', packageName, text)
}

function load(): Native {
  const loaded = loadAddon()
  const functions: Native = { ...(loaded.addon as Addon), ...nativeOps(loaded.addon) }
  checkKinds(functions, loaded.file)
  file = loaded.file
  trimWhenIdle(functions)
  functions.setErrorFactory((code, op, text) => new MoeError(code as MoeErrorCode, op, text.slice(op.length + 3)))
  return functions
}

/**
 * The addon: the ops that native/core/ops.inc declares, by name, and the functions that native/binding writes by hand.
 * The first use of a function loads it, or throws BACKEND_UNAVAILABLE; the next use then tries again. From then on this
 * is the plain object of functions. Take no function out of it at import.
 */
export let native: Native = new Proxy({} as Native, {
  get(_, name) {
    native = load()
    return native[name as keyof Native]
  },
})

/** Where the addon is, which is loaded if it was not; plugins are next to it. */
export function addonFile(): string {
  if (file === '') native = load()
  return file
}
