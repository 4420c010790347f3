import { checkInteger } from './check.js'
import { MoeError, show } from './errors.js'
import { native } from './native.js'

export type Device = 'cpu' | 'cuda' | `cuda:${number}`

/** A device kind this package knows, whether it can be used here, and where not, at which stage it failed and why. */
export interface DeviceInfo {
  device: Device
  available: boolean
  /** Instruction set of the CPU kernels, or the name of the card. */
  variant?: string
  stage?: 'plugin' | 'abi' | 'driver' | 'device' | 'cublas'
  reason?: string
}

const cudaReason = 'this build has no CUDA backend (libst_moe_cuda.so is not beside the addon)'

/**
 * All devices, usable or not.
 *
 * @example
 * for (const { device, available, reason } of devices()) console.log(device, available ? 'ready' : reason)
 */
export function devices(): DeviceInfo[] {
  return [
    { device: 'cpu', available: true, variant: native.deviceInfo(0).variant },
    { device: 'cuda', available: false, stage: 'plugin', reason: cudaReason },
  ]
}

/** Number of a device in the native table. Throws DEVICE for an unknown name, BACKEND_UNAVAILABLE where it cannot be used. */
export function deviceIndex(op: string, device: unknown): number {
  if (device === 'cpu') return 0
  if (typeof device === 'string' && /^cuda(:\d{1,4})?$/.test(device)) {
    throw new MoeError('BACKEND_UNAVAILABLE', op, `device '${device}' cannot be used: plugin: ${cudaReason}`)
  }
  throw new MoeError('DEVICE', op, `device must be 'cpu', 'cuda' or 'cuda:<number>', got ${show(device)}`)
}

export interface MemoryInfo {
  /** Live tensors, those that a recorded graph holds included. */
  tensors: number
  /** Bytes of live tensors, optimizer state included. */
  bytes: number
  peakBytes: number
  /** Bytes that the process keeps for re-use; not part of `bytes`. */
  cachedBytes: number
}

/**
 * What this environment (main thread or worker) holds. The same after each step of a steady loop.
 *
 * @example
 * const { tensors, bytes } = memory()
 */
export function memory(): MemoryInfo & { devices: Record<string, MemoryInfo> } {
  const [tensors, bytes, peakBytes, cachedBytes] = native.memory(0)
  const cpu = { tensors, bytes, peakBytes, cachedBytes }
  return { ...cpu, devices: { cpu } }
}

/** Sets `peakBytes` back to what is live now. */
export function resetPeakMemory(): void {
  native.resetPeak(0)
}

/** CPU threads that this environment's calls use, 1 to 256. Results do not depend on it. */
export function setNumThreads(threads: number): void {
  native.setThreads(checkInteger('setNumThreads', 'threads', threads, 1, 256))
}

export function getNumThreads(): number {
  return native.getThreads()
}
