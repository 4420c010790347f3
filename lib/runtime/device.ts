import { existsSync } from 'node:fs'
import { basename, delimiter, dirname, join } from 'node:path'
import { folderOf, glibc, systemName } from './addon.js'
import { checkInteger } from './check.js'
import { MoeError, show, within } from './errors.js'
import { damageOf } from './library-file.js'
import { addonFile, native } from './native.js'
import { notPublished } from './published.js'

/**
 * The device of a tensor. 'cuda' is 'cuda:0'. Devices of a plugin that ST_MOE_PLUGINS names have the plugin's name in
 * place of 'cuda'.
 */
export type Device = 'cpu' | 'cuda' | `cuda:${number}` | `${string}:${number}`

/** A device, whether it can be used, and otherwise the stage and reason of the failure. */
export interface DeviceInfo {
  /** Its name in the option `device`. */
  device: Device
  /** Whether nothing is known against it. A GPU that is full, or another process has to itself, fails at its first use. */
  available: boolean
  /** Instruction set of the CPU kernels, or the name of the GPU. */
  variant?: string
  /** Bytes of its memory, of a GPU. */
  totalBytes?: number
  /** The version of its driver, of a GPU, such as `580.65.06, CUDA 13.0`: the CUDA version is the latest that it runs. */
  driver?: string
  /**
   * The stage that failed: the plugin file, its build, the driver, the GPU, or the cuBLAS library. Another plugin may have
   * stages of its own.
   */
  stage?: 'plugin' | 'abi' | 'driver' | 'device' | 'cublas' | (string & {})
  /** The reason, for people. */
  reason?: string
}

/**
 * The plugin that has a package: the name of its devices, what installs or builds it, and its files. That of CUDA 13 is
 * tried first; an older driver runs that of CUDA 12.
 */
const cuda = {
  name: 'cuda',
  files: ['libst_moe_cuda.so', 'libst_moe_cuda12.so'],
  variable: 'ST_MOE_CUDA_LIBRARY',
  package: 'st-moe-cuda',
  build: 'npm run build:cuda',
} as const

/**
 * The files of the CUDA plugin that there are, the first to try first: those compiled on this machine, beside the addon,
 * before those of the package st-moe-cuda. Where there is none, the file that should be there.
 */
function pluginPaths(): string[] {
  const chosen = process.env[cuda.variable]
  if (chosen) return [chosen]
  const installed = folderOf(cuda.package)
  const folders = [dirname(addonFile()), ...(installed ? [join(installed, `${process.platform}-${process.arch}`)] : [])]
  const inFolder = folders.map((folder) => cuda.files.map((file) => join(folder, file)))
  const there = inFolder.map((files) => files.filter((file) => existsSync(file))).find((files) => files.length > 0)
  return there ?? inFolder[inFolder.length - 1].slice(0, 1)
}

/** The file of the CUDA plugin that is tried first. */
export const pluginPath = (): string => pluginPaths()[0]

/** Why the CUDA plugin must not be loaded, and the fix; null if it may be. There are prebuilt ones for Linux with glibc. */
function pluginFault(path: string): string | null {
  const damage = damageOf(path)
  if (damage === null) return null
  if (process.env[cuda.variable]) return `${path}: ${damage}. ${cuda.variable} names this file`
  const prebuilt = process.platform === 'linux' && ['x64', 'arm64'].includes(process.arch) && glibc() !== null
  const none = `There is no prebuilt CUDA plugin for ${systemName()}`
  if (existsSync(path)) {
    const fix = prebuilt ? `Install ${cuda.package} again, or in a clone run: ${cuda.build}` : none
    return `${path}: ${damage}. ${fix}`
  }
  const source = prebuilt ? `In a clone run: ${cuda.build}; ${notPublished(cuda.package)}` : none
  return `the CUDA plugin is not installed (${path}). ${source}`
}

/** A plugin that was loaded, or why it was not. `name` is that of its devices. */
interface Plugin extends ReturnType<typeof native.probePlugin> {
  path: string
}

/** Loads a plugin, once per process, and counts its devices. A damaged file is reported, not loaded. */
function load(path: string, name: string, fault: string | null, otherBuild: string): Plugin {
  if (fault !== null) return { path, name, devices: 0, stage: 'plugin', reason: fault }
  const found = native.probePlugin(path, programFolders().join('\n'))
  const fix = found.stage === 'abi' ? `. ${otherBuild}` : ''
  return { path, ...found, name: found.name || name, reason: found.reason + fix }
}

/** Where a Python environment may lie whose libraries a plugin needs: the working folder, and that of the main script. */
function programFolders(): string[] {
  const script = process.argv[1]
  try {
    return [...new Set([process.cwd(), ...(script ? [dirname(script)] : [])])]
  } catch {
    return [] // the working folder is gone
  }
}

function loadCuda(): Plugin {
  const fix = `Install ${cuda.package} of the same version as st-moe, or in a clone run: ${cuda.build}`
  let found!: Plugin
  for (const path of pluginPaths()) {
    found = load(path, cuda.name, pluginFault(path), fix)
    if (found.stage !== 'driver') break // else it is too old for this one
  }
  if (found.name === cuda.name) return found
  const reason = `${found.path} is the plugin of '${found.name}': name it in ST_MOE_PLUGINS, not in ${cuda.variable}`
  return { path: found.path, name: cuda.name, devices: 0, stage: 'plugin', reason }
}

let others: readonly Plugin[] | null = null

/** The plugins of ST_MOE_PLUGINS, which is read once. One that cannot be loaded has the name of its file. */
function loadOthers(): readonly Plugin[] {
  others ??= othersOf(process.env.ST_MOE_PLUGINS ?? '')
  return others
}

function othersOf(list: string): Plugin[] {
  const paths = list.split(delimiter).filter((path) => path !== '')
  return paths.map((path) => {
    const damage = damageOf(path)
    const name = basename(path).replace(/^lib/, '').replace(/\..*$/, '')
    const fault = damage === null ? null : `${path}: ${damage}. ST_MOE_PLUGINS names this file`
    return load(path, name, fault, 'Build this plugin again from the source of this version')
  })
}

/** Native indices of the devices that this environment has opened. */
const opened = new Map<Device, number>([['cpu', 0]])

/**
 * All devices, usable or not, without opening one: a listing takes no memory of a GPU. The entry of a device contains its
 * error. Errors: only BACKEND_UNAVAILABLE, if the addon
 * itself cannot be loaded.
 *
 * @example
 * ```ts
 * const usable = devices().filter(({ available }) => available)
 * const whyNot = devices().map(({ device, stage, reason }) => `${device}: ${stage}: ${reason}`)
 * console.log(usable[0].device) // → cpu
 * ```
 */
export function devices(): DeviceInfo[] {
  return [{ device: 'cpu', available: true, variant: native.deviceInfo(0).variant }, ...plugins().flatMap(devicesOf)]
}

function plugins(): Plugin[] {
  return [loadCuda(), ...loadOthers()]
}

function devicesOf({ path, name, devices: count, stage, reason }: Plugin): DeviceInfo[] {
  if (count <= 0) return [{ device: name as Device, available: false, stage, reason }]
  return Array.from({ length: count }, (_, i): DeviceInfo => {
    const { variant, bytes, driver, reason } = native.describeDevice(path, i)
    const known = { variant, ...(bytes > 0 && { totalBytes: bytes }), ...(driver !== '' && { driver }) }
    const fault = reason === '' ? { available: true } : { available: false, stage: 'device', reason }
    return { device: `${name}:${i}`, ...fault, ...known }
  })
}

/** The plugin of a canonical name. */
function pluginOf(device: Device): Plugin {
  const [name] = device.split(':')
  return loadOthers().find((plugin) => plugin.name === name) ?? loadCuda()
}

/** The names of devices of plugins, without their numbers. Does not load the CUDA plugin. */
export const pluginNames = (): string[] => [cuda.name, ...loadOthers().map(({ name }) => name)]

/** Whether a device is the CPU, whose threads `setNumThreads` sets. */
export const isCpu = (device: string): boolean => device === 'cpu'

/** Whether a text is meant as the name of a device. */
export const isDeviceName = (text: string): boolean =>
  text === 'cpu' || pluginNames().some((name) => text.startsWith(name))

/** The canonical name of a device: 'cuda' is 'cuda:0'. Throws DEVICE for an unknown name. */
export function checkDevice(op: string, device: unknown): Device {
  if (device === 'cpu') return 'cpu'
  const [, name, number = '0'] = (typeof device === 'string' && /^(.*?)(?::(\d{1,4}))?$/.exec(device)) || []
  if (name === cuda.name || (name && pluginNames().includes(name))) return `${name}:${Number(number)}`
  const known = pluginNames().map((name) => `'${name}' or '${name}:<number>'`)
  throw new MoeError('DEVICE', op, `device must be 'cpu', ${known.join(', ')}, got ${show(device)}`)
}

/** Whether the values of a device are in memory of the host, where they can be read without waiting. */
export const hasHostMemory = (device: Device): boolean => policyOf(device).hostMemory

/** Whether experts compute a row for every slot on this device, rather than wait for how many are dispatched. */
export const prefersSlots = (device: Device): boolean => policyOf(device).prefersSlots

type Policy = ReturnType<typeof native.deviceInfo>
const policies = new Map<Device, Policy>()

/** What the backend of a device says of itself, asked once. */
function policyOf(device: Device): Policy {
  const known = policies.get(device)
  if (known) return known
  const policy = native.deviceInfo(deviceIndex('device', device))
  policies.set(device, policy)
  return policy
}

/** The devices that this environment has opened, with their native indices. */
export const openedDevices = (): ReadonlyMap<Device, number> => opened

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
  const index = Number(name.split(':')[1])
  const { path, devices: count, stage, reason } = pluginOf(name)
  if (count <= 0) throw new MoeError('BACKEND_UNAVAILABLE', op, `device '${name}' cannot be used: ${stage}: ${reason}`)
  if (index >= count) {
    throw new MoeError('BACKEND_UNAVAILABLE', op, `device '${name}' cannot be used: device: number of GPUs: ${count}`)
  }
  const number = opened.get(name) ?? within(op, () => native.openDevice(path, index))
  opened.set(name, number)
  return number
}

/** Multiply-adds of the CPU's bf16 dot products in the time of one by float32 FMA; 0 without the instruction. */
export const bf16DotSpeed = (): number => native.bf16DotSpeed()

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
  threadsAreChosen = true
}

let threadsAreChosen = false

/** Divides the CPUs between `processes` of this machine, unless the program has set its threads. */
export function shareThreads(processes: number): void {
  if (!threadsAreChosen) native.setThreads(Math.max(1, Math.floor(native.getThreads() / processes)))
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
