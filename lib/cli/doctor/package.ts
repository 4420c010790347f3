import { existsSync, readFileSync } from 'node:fs'
import { type DeviceInfo, devices, getNumThreads, pluginPath } from '../../device.js'
import { addonFile } from '../../native.js'
import { type SelfTest, selfTest } from './self-test.js'

/** What is known once the addon is loaded. Importing this file loads it. */
export interface PackageFacts {
  addon: string
  threads: number
  /** The CUDA plugin that is there, or that ST_MOE_CUDA_LIBRARY names. */
  plugin: string | null
  /** cuBLAS, once a card has used it. */
  cublas: string | null
  devices: (DeviceInfo & { selfTest?: SelfTest })[]
}

export function packageFacts(): PackageFacts {
  const tested = devices().map((info) => (info.available ? { ...info, selfTest: selfTest(info.device) } : info))
  return {
    addon: addonFile,
    threads: getNumThreads(),
    plugin: process.env.ST_MOE_CUDA_LIBRARY || existsSync(pluginPath()) ? pluginPath() : null,
    cublas: loadedLibrary(/\S*\/libcublas\.so\S*/),
    devices: tested,
  }
}

/** The file of a library that this process has opened, as Linux tells it. */
function loadedLibrary(pattern: RegExp): string | null {
  try {
    return pattern.exec(readFileSync('/proc/self/maps', 'utf8'))?.[0] ?? null
  } catch {
    return null
  }
}
