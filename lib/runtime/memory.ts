import { checkInteger } from './check.js'
import { checkDevice, type Device, deviceIndex, openedDevices } from './device.js'
import { within } from './errors.js'
import { native } from './native.js'

/** Native memory of one device, or of all. */
export interface MemoryInfo {
  /** Number of live tensors, including those of recorded graphs. */
  tensors: number
  /** Bytes of live tensors, including optimizer state and packed copies of weights. */
  bytes: number
  /** Maximum of `bytes` since the start or {@link resetPeakMemory}. */
  peakBytes: number
  /** Bytes that the process caches for reuse; not part of `bytes`. */
  cachedBytes: number
}

/** Totals, and the memory of each device that has been used. */
export interface MemoryReport extends MemoryInfo {
  /** By name, such as `cpu` or `cuda:0`. */
  devices: Record<string, MemoryInfo>
}

function memoryOf(number: number): MemoryInfo {
  const [tensors, bytes, peakBytes, cachedBytes] = native.memory(number)
  return { tensors, bytes, peakBytes, cachedBytes }
}

/**
 * Native memory of this environment (main thread or worker), in total and per device. In a steady training loop it is
 * the same after each step.
 *
 * @example
 * ```ts
 * const before = memory().bytes
 * using x = ones([1000])
 * console.log(memory().bytes - before) // → 4000
 * ```
 */
export function memory(): MemoryReport {
  const perDevice = [...openedDevices()].map(([device, number]) => [device, memoryOf(number)] as const)
  const total = { tensors: 0, bytes: 0, peakBytes: 0, cachedBytes: 0 }
  for (const [, info] of perDevice) {
    for (const key of Object.keys(total) as (keyof MemoryInfo)[]) total[key] += info[key]
  }
  return { ...total, devices: Object.fromEntries(perDevice) }
}

/**
 * Resets `peakBytes` of every device to the live bytes.
 *
 * @example
 * ```ts
 * resetPeakMemory()
 * const { bytes } = memory()
 * scope(() => ones([1000]).mul(2).sum().item())
 * console.log(memory().peakBytes - bytes >= 8000) // → true
 * ```
 */
export function resetPeakMemory(): void {
  for (const number of openedDevices().values()) native.resetPeak(number)
}

/**
 * Gives the memory that is cached for reuse back: on the CPU to the system, on a GPU to the driver, where other
 * processes find it. Of one device, or of all that have been used; the next operations take memory anew, which is
 * slower. `cachedBytes` of {@link memory} says how much there is. The cache is emptied without this call before an
 * OUT_OF_MEMORY error. On a GPU it waits for the device. Errors: DEVICE.
 *
 * @example
 * ```ts
 * ones([1000]).dispose()
 * emptyCache()
 * console.log(memory().devices.cpu.cachedBytes) // → 0
 * ```
 */
export function emptyCache(device?: Device): void {
  const op = 'emptyCache'
  const name = device === undefined ? null : checkDevice(op, device)
  for (const [known, number] of openedDevices())
    if (name === null || known === name) within(op, () => native.emptyCache(number))
}

/**
 * Limits the bytes that this process takes on a device, over all threads: tensors, scratch memory of operations, and
 * the cache, which is emptied before the limit is an OUT_OF_MEMORY error. Infinity, as at the start, is no limit. On
 * the CPU, memory of JavaScript is not counted; on a GPU, the workspace of cuBLAS is, the driver's context and the code
 * of kernels are not. Memory that is taken already stays. Errors: DEVICE, BACKEND_UNAVAILABLE, UNSUPPORTED by a plugin
 * that has no limit, OPTION unless `bytes` is a whole number of at least 1, or Infinity.
 *
 * @example
 * ```ts
 * setMemoryLimit('cpu', 4 * 2 ** 30)
 * try {
 *   zeros([2 ** 31])
 * } catch (error) {
 *   console.log((error as MoeError).code) // → OUT_OF_MEMORY
 * }
 * setMemoryLimit('cpu', Infinity)
 * ```
 */
export function setMemoryLimit(device: Device, bytes: number): void {
  const op = 'setMemoryLimit'
  const number = deviceIndex(op, device)
  const limit = bytes === Infinity ? 0 : checkInteger(op, 'bytes', bytes, 1, Number.MAX_SAFE_INTEGER)
  within(op, () => native.setMemoryLimit(number, limit))
}
