import { createRequire } from 'node:module'

/** The functions of the version of Node-API that package.json names. */
export function nodeApiFunctions() {
  const require = createRequire(import.meta.url)
  const [version] = require('../package.json').binary.napi_versions
  const { js_native_api_symbols, node_api_symbols } = require('node-api-headers').symbols[`v${version}`]
  return [...js_native_api_symbols, ...node_api_symbols]
}
