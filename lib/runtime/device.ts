import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { folderOf, glibc, systemName } from './addon.js'
import { checkInteger } from './check.js'
import { MoeError, show } from './errors.js'
import { damageOf } from './library-file.js'
import { addonFile, native } from './native.js'

/** The device of a tensor. 'cuda' is 'cuda:0'. */
export type Device = 'cpu' | 'cuda' | `cuda:${number}`

/** A device, whether it can be used, and otherwise the stage and reason of the failure. */
export interface DeviceInfo {
  /** Its name in the option `device`. */
  device: Device
  /** Whether it can be used. */
  available: boolean
  /** Instruction set of the CPU kernels, or the name of the GPU. */
  variant?: string
  /** The stage that failed: the plugin file, its version, the driver, the GPU, or the cuBLAS library. */
  stage?: 'plugin' | 'abi' | 'driver' | 'device' | 'cublas'
  /** The reason, for people. */
  reason?: string
}

const plugin = 'libst_moe_cuda.so'

/**
 * The file of the CUDA plugin, which is loaded at the first use of a device: one compiled on this machine, beside the
 * addon, before that of the package st-moe-cuda.
 */
export function pluginPath(): string {
  if (process.env.ST_MOE_CUDA_LIBRARY) return process.env.ST_MOE_CUDA_LIBRARY
  const own = join(dirname(addonFile()), plugin)
  const installed = folderOf('st-moe-cuda')
  return existsSync(own) || !installed ? own : join(installed, `${process.platform}-${process.arch}`, plugin)
}

/** Why the plugin must not be loaded, and the fix; null if it may be. There are prebuilt ones for Linux with glibc. */
function pluginFault(path: string): string | null {
  const damage = damageOf(path)
  if (damage === null) return null
  if (process.env.ST_MOE_CUDA_LIBRARY) return `${path}: ${damage}. ST_MOE_CUDA_LIBRARY names this file`
  const prebuilt = process.platform === 'linux' && ['x64', 'arm64'].includes(process.arch) && glibc() !== null
  const none = `There is no prebuilt CUDA plugin for ${systemName()}`
  if (existsSync(path)) {
    const fix = prebuilt ? 'Install st-moe-cuda again, or in a clone run: npm run build:cuda' : none
    return `${path}: ${damage}. ${fix}`
  }
  const source = prebuilt ? 'Run: npm install st-moe-cuda (in a clone: npm run build:cuda)' : none
  return `the CUDA plugin is not installed (${path}). ${source}`
}

/** Loads the plugin, once per process, and counts its devices. A damaged file is reported, not loaded. */
function probePlugin(path: string): ReturnType<typeof native.probePlugin> {
  const reason = pluginFault(path)
  return reason === null ? native.probePlugin(path) : { devices: 0, stage: 'plugin', reason }
}

/** Native indices of the devices that this environment has opened. */
const opened = new Map<Device, number>([['cpu', 0]])

/**
 * All devices, usable or not. Never throws: the entry of a device contains its error.
 *
 * @example
 * ```ts
 * const usable = devices().filter(({ available }) => available)
 * const whyNot = devices().map(({ device, stage, reason }) => `${device}: ${stage}: ${reason}`)
 * console.log(usable[0].device) // → cpu
 * ```
 */
export function devices(): DeviceInfo[] {
  const cpu: DeviceInfo = { device: 'cpu', available: true, variant: native.deviceInfo(0).variant }
  const { devices: count, stage, reason } = probePlugin(pluginPath())
  if (count <= 0) return [cpu, { device: 'cuda', available: false, stage: stage as DeviceInfo['stage'], reason }]
  const gpus = Array.from({ length: count }, (_, i): DeviceInfo => {
    const device: Device = `cuda:${i}`
    try {
      return { device, available: true, variant: native.deviceInfo(deviceIndex('devices', device)).variant }
    } catch (error) {
      return { device, available: false, stage: 'device', reason: (error as Error).message }
    }
  })
  return [cpu, ...gpus]
}

/** The canonical name of a device: 'cuda' is 'cuda:0'. Throws DEVICE for an unknown name. */
export function checkDevice(op: string, device: unknown): Device {
  if (device === 'cpu') return 'cpu'
  if (device === 'cuda') return 'cuda:0'
  if (typeof device === 'string' && /^cuda:\d{1,4}$/.test(device)) return `cuda:${Number(device.slice(5))}`
  throw new MoeError('DEVICE', op, `device must be 'cpu', 'cuda' or 'cuda:<number>', got ${show(device)}`)
}

let defaultDevice: Device = 'cpu'

/**
 * Sets the default device of new tensors and layers in this environment (main thread or worker). Errors: DEVICE for an
 * unknown name, BACKEND_UNAVAILABLE if the device cannot be used.
 *
 * @example
 * ```ts
 * const gpu = devices().find(({ device, available }) => device !== 'cpu' && available)
 * if (gpu) setDefaultDevice(gpu.device)
 * console.log(ones([2]).device === (gpu?.device ?? 'cpu')) // → true
 * setDefaultDevice('cpu')
 * ```
 */
export function setDefaultDevice(device: Device): void {
  const name = checkDevice('setDefaultDevice', device)
  deviceIndex('setDefaultDevice', name)
  defaultDevice = name
}

/**
 * The device of {@link setDefaultDevice}, initially 'cpu'.
 *
 * @example
 * ```ts
 * console.log(ones([2]).device === getDefaultDevice()) // → true
 * ```
 */
export const getDefaultDevice = (): Device => defaultDevice

/**
 * Index of a device in the native table; opens it at the first use. Throws BACKEND_UNAVAILABLE if it cannot be used.
 */
export function deviceIndex(op: string, device: Device): number {
  const known = opened.get(device)
  if (known !== undefined) return known
  const name = checkDevice(op, device)
  const path = pluginPath()
  const { devices: count, stage, reason } = probePlugin(path)
  const index = Number(name.slice(5))
  if (count <= 0) throw new MoeError('BACKEND_UNAVAILABLE', op, `device '${name}' cannot be used: ${stage}: ${reason}`)
  if (index >= count) {
    throw new MoeError('BACKEND_UNAVAILABLE', op, `device '${name}' cannot be used: device: number of GPUs: ${count}`)
  }
  const number = opened.get(name) ?? native.openDevice(path, index)
  opened.set(name, number)
  return number
}

/** Multiply-adds of the CPU's bf16 dot products in the time of one by float32 FMA; 0 without the instruction. */
export const bf16DotSpeed = (): number => native.bf16DotSpeed()

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
  const perDevice = [...opened].map(([device, number]) => [device, memoryOf(number)] as const)
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
  for (const number of opened.values()) native.resetPeak(number)
}

/**
 * Sets the number of CPU threads that this environment uses, 1 to 256. It does not change results. Initially it is the
 * number of CPUs that the process may use: on Linux the least of its affinity mask and the CPU quota of its container,
 * rounded up. Errors: OPTION.
 *
 * @example
 * ```ts
 * setNumThreads(1)
 * console.log(getNumThreads()) // → 1
 * ```
 */
export function setNumThreads(threads: number): void {
  native.setThreads(checkInteger('setNumThreads', 'threads', threads, 1, 256))
}

/**
 * The number of threads of {@link setNumThreads}.
 *
 * @example
 * ```ts
 * console.log(getNumThreads() >= 1) // → true
 * ```
 */
export function getNumThreads(): number {
  return native.getThreads()
}
