import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { sanitized } from './child.js'

/**
 * The CUDA backend on the emulator, if `npm run build:simt` has built it. A sanitizer of the addon does not watch it: it
 * has a lane of its own.
 */
export const emulator = fileURLToPath(new URL('../../build/libst_moe_simt.so', import.meta.url))
export const emulatorBuilt = existsSync(emulator) && !sanitized

/** Plugins of one device without ops, `empty` and `remote`, which the same build makes. */
export const emptyPlugin = fileURLToPath(new URL('../../build/simt/libempty_plugin.so', import.meta.url))
export const remotePlugin = fileURLToPath(new URL('../../build/simt/libremote_plugin.so', import.meta.url))
export const emptyPluginBuilt = existsSync(emptyPlugin) && existsSync(remotePlugin)

/** Makes the emulator device `cuda`, unless ST_MOE_CUDA_LIBRARY names another plugin. Returns whether there is one. */
export function useEmulator(): boolean {
  if (sanitized) return false
  process.env.ST_MOE_CUDA_LIBRARY ??= emulator
  return existsSync(process.env.ST_MOE_CUDA_LIBRARY)
}
