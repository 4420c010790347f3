import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { checkInteger } from './check.js'
import { MoeError, show } from './errors.js'
import { damageOf } from './library-file.js'
import { addonFile, native } from './native.js'

/** Where a tensor lives. 'cuda' is 'cuda:0'. */
export type Device = 'cpu' | 'cuda' | `cuda:${number}`

/** A device kind this package knows, whether it can be used here, and where not, at which stage it failed and why. */
export interface DeviceInfo {
  /** Its name in the option `device`. */
  device: Device
  /** Tensors can be made on it. */
  available: boolean
  /** Instruction set of the CPU kernels, or the name of the card. */
  variant?: string
  /** Where it failed: the plugin file, its version, the driver, the card, or the cuBLAS library. */
  stage?: 'plugin' | 'abi' | 'driver' | 'device' | 'cublas'
  /** What happened there, for people. */
  reason?: string
}

/** The plugin with the CUDA backend, opened when a device is asked for. */
export const pluginPath = (): string => process.env.ST_MOE_CUDA_LIBRARY || join(dirname(addonFile), 'libst_moe_cuda.so')

/** Why the plugin must not be opened, and what helps; null where it may be. Only one platform has a prebuilt one. */
function pluginFault(path: string): string | null {
  const damage = damageOf(path)
  if (damage === null) return null
  if (process.env.ST_MOE_CUDA_LIBRARY) return `${path}: ${damage}. ST_MOE_CUDA_LIBRARY names this file`
  const prebuilt = process.platform === 'linux' && process.arch === 'x64'
  const none = `There is no prebuilt CUDA plugin for ${process.platform}-${process.arch}`
  if (existsSync(path)) {
    const cure = prebuilt ? 'Install st-moe again, or in a clone run: npm run build:cuda' : none
    return `${path}: ${damage}. ${cure}`
  }
  const source = prebuilt ? 'The published package for linux-x64 has one; in a clone run: npm run build:cuda' : none
  return `this package was built without the CUDA plugin, which would be ${path}. ${source}`
}

/** Opens the plugin, once a process, and asks it for devices. A file that must not be opened is an answer too. */
function probePlugin(path: string): ReturnType<typeof native.probePlugin> {
  const reason = pluginFault(path)
  return reason === null ? native.probePlugin(path) : { devices: 0, stage: 'plugin', reason }
}

/** Native numbers of the devices that this environment has opened. */
const opened = new Map<Device, number>([['cpu', 0]])

/**
 * All devices, usable or not. Throws nothing: what is wrong with a device is in its entry.
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
  const cards = Array.from({ length: count }, (_, i): DeviceInfo => {
    const device: Device = `cuda:${i}`
    try {
      return { device, available: true, variant: native.deviceInfo(deviceIndex('devices', device)).variant }
    } catch (error) {
      return { device, available: false, stage: 'device', reason: (error as Error).message }
    }
  })
  return [cpu, ...cards]
}

/** The name under which a device is known: 'cuda' is 'cuda:0'. Throws DEVICE for anything else. */
export function checkDevice(op: string, device: unknown): Device {
  if (device === 'cpu') return 'cpu'
  if (device === 'cuda') return 'cuda:0'
  if (typeof device === 'string' && /^cuda:\d{1,4}$/.test(device)) return `cuda:${Number(device.slice(5))}`
  throw new MoeError('DEVICE', op, `device must be 'cpu', 'cuda' or 'cuda:<number>', got ${show(device)}`)
}

let defaultDevice: Device = 'cpu'

/**
 * Where tensors and layers of this environment (main thread or worker) are made when nothing is said. Errors: DEVICE
 * for an unknown name, BACKEND_UNAVAILABLE where the device cannot be used.
 *
 * @example
 * ```ts
 * const card = devices().find(({ device, available }) => device !== 'cpu' && available)
 * if (card) setDefaultDevice(card.device)
 * console.log(ones([2]).device === (card?.device ?? 'cpu')) // → true
 * setDefaultDevice('cpu')
 * ```
 */
export function setDefaultDevice(device: Device): void {
  const name = checkDevice('setDefaultDevice', device)
  deviceIndex('setDefaultDevice', name)
  defaultDevice = name
}

/**
 * 'cpu' unless {@link setDefaultDevice} has been called in this environment.
 *
 * @example
 * ```ts
 * console.log(ones([2]).device === getDefaultDevice()) // → true
 * ```
 */
export const getDefaultDevice = (): Device => defaultDevice

/** Number of a device in the native table; opens it at the first use. Throws BACKEND_UNAVAILABLE where it cannot be used. */
export function deviceIndex(op: string, device: Device): number {
  const known = opened.get(device)
  if (known !== undefined) return known
  const name = checkDevice(op, device)
  const path = pluginPath()
  const { devices: count, stage, reason } = probePlugin(path)
  const index = Number(name.slice(5))
  if (count <= 0) throw new MoeError('BACKEND_UNAVAILABLE', op, `device '${name}' cannot be used: ${stage}: ${reason}`)
  if (index >= count) {
    throw new MoeError('BACKEND_UNAVAILABLE', op, `device '${name}' cannot be used: device: there are ${count} cards`)
  }
  const number = opened.get(name) ?? native.openDevice(path, index)
  opened.set(name, number)
  return number
}

/** Native memory of one device, or of all. */
export interface MemoryInfo {
  /** Live tensors, those that a recorded graph holds included. */
  tensors: number
  /** Bytes of live tensors, optimizer state and packed copies of weights included. */
  bytes: number
  /** The most that `bytes` has been since the start or {@link resetPeakMemory}. */
  peakBytes: number
  /** Bytes that the process keeps for re-use; not part of `bytes`. */
  cachedBytes: number
}

/** All devices together, and each that has been used. */
export interface MemoryReport extends MemoryInfo {
  /** By name, such as `cpu` or `cuda:0`. */
  devices: Record<string, MemoryInfo>
}

function memoryOf(number: number): MemoryInfo {
  const [tensors, bytes, peakBytes, cachedBytes] = native.memory(number)
  return { tensors, bytes, peakBytes, cachedBytes }
}

/**
 * What this environment (main thread or worker) holds, in all and on each device. The same after each step of a
 * steady loop.
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
 * Sets `peakBytes` of every device back to what is live now.
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
 * CPU threads that this environment's calls use, 1 to 256, at first the cores of the machine. Results do not depend on
 * it. Errors: OPTION.
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
 * The threads of {@link setNumThreads}.
 *
 * @example
 * ```ts
 * console.log(getNumThreads() >= 1) // → true
 * ```
 */
export function getNumThreads(): number {
  return native.getThreads()
}
