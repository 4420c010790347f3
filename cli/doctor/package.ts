import { existsSync, readFileSync } from 'node:fs'
import { addonFile, bf16DotSpeed, isCpu, pluginPath } from '../../lib/doctor/index.js'
import { type DeviceInfo, devices, getNumThreads, type ProcessBackendInfo, processBackends } from '../../lib/index.js'
import { type SelfTest, selfTest } from './self-test.js'

/** Facts that need the addon. */
export interface PackageFacts {
  addon: string
  threads: number
  /** The file of the CUDA plugin, if it exists or ST_MOE_CUDA_LIBRARY names it. */
  plugin: string | null
  /** The file of cuBLAS, once a GPU has used it. */
  cublas: string | null
  /** See bf16DotSpeed() of device.ts. */
  bf16DotSpeed: number
  devices: (DeviceInfo & { selfTest?: SelfTest })[]
  /** What connects several processes. */
  processBackends: ProcessBackendInfo[]
}

export function packageFacts(everyDevice: boolean): PackageFacts {
  const tested = devices().map((info) => {
    const isTested = info.available && (everyDevice || isCpu(info.device))
    return isTested ? { ...info, selfTest: selfTest(info.device) } : info
  })
  return {
    addon: addonFile(),
    threads: getNumThreads(),
    plugin: process.env.ST_MOE_CUDA_LIBRARY || existsSync(pluginPath()) ? pluginPath() : null,
    cublas: loadedLibrary(/\S*\/libcublas\.so\S*/),
    bf16DotSpeed: bf16DotSpeed(),
    devices: tested,
    processBackends: processBackends(),
  }
}

/** The file of a loaded library, on Linux. */
function loadedLibrary(pattern: RegExp): string | null {
  try {
    return pattern.exec(readFileSync('/proc/self/maps', 'utf8'))?.[0] ?? null
  } catch {
    return null
  }
}
