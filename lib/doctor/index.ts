/**
 * What the program `st-moe` asks of an installation and its devices, and is not part of the public API. The functions of
 * addon.ts do not load the addon.
 */

export { addonPlaces, glibc, packageRoot, systemName } from '../runtime/addon.js'
export { bf16DotSpeed, hasHostMemory, isCpu, pluginNames, pluginPath } from '../runtime/device.js'
export { addonFile } from '../runtime/native.js'
