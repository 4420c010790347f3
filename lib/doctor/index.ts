/**
 * What `st-moe doctor` reports of an installation: places, versions and files that are not part of the public API. Nothing
 * here loads the addon but {@link addonFile}, {@link bf16DotSpeed} and {@link pluginPath}.
 */

export { addonPlaces, glibc, packageRoot, systemName } from '../runtime/addon.js'
export { bf16DotSpeed, pluginPath } from '../runtime/device.js'
export { addonFile } from '../runtime/native.js'
