import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MoeError } from './errors.js'
import { damageOf } from './library-file.js'

const root = fileURLToPath(new URL('..', import.meta.url))

/**
 * Loads the addon: one compiled on this machine before a prebuilt one, as node-gyp-build chooses. Throws
 * BACKEND_UNAVAILABLE with what was tried, what is needed and the command that helps.
 */
export function loadAddon(): { addon: unknown; folder: string } {
  const require = createRequire(import.meta.url)
  let file: string | null = null
  try {
    const found: string = require('node-gyp-build').path(root)
    file = found
    const damage = damageOf(found)
    if (damage !== null) throw new Error(damage)
    const addon = require(found)
    if (typeof addon?.setErrorFactory !== 'function') throw new Error('this is not the addon of st-moe')
    return { addon, folder: dirname(found) }
  } catch (cause) {
    throw new MoeError('BACKEND_UNAVAILABLE', 'st-moe', explanation(file, cause as Error), { cause })
  }
}

function explanation(file: string | null, cause: Error): string {
  const platform = `${process.platform}-${process.arch}`
  const libc = process.platform === 'linux' ? libcName() : ''
  const prebuilt = entries(join(root, 'prebuilds')).flatMap((target) =>
    entries(join(root, 'prebuilds', target)).flatMap((name) => (name.endsWith('.node') ? join(target, name) : [])),
  )
  const reason = cause.message.trim().split('\n', 1)[0]
  const tried = file
    ? [`${file}: ${reason}`]
    : [
        `${join(root, 'build', 'Release')}: no addon`,
        `${join(root, 'prebuilds')}: ${prebuilt.length > 0 ? `only ${prebuilt.join(', ')}` : 'no addon'}`,
        `node-gyp-build: ${reason}`,
      ]
  return [
    `the native addon could not be loaded on ${platform}${libc} (Node ${process.versions.node}, N-API ${process.versions.napi}).`,
    'Tried:',
    ...tried.map((line) => `  ${line}`),
    'Needed: a prebuilt addon that this system can load, or a C++ compiler, make and CMake to build one.',
    `To build it, or to learn what that lacks here, run: node ${JSON.stringify(join(root, 'scripts', 'install.cjs'))}`,
  ].join('\n')
}

function libcName(): string {
  const { header } = process.report.getReport() as { header?: { glibcVersionRuntime?: string } }
  return header?.glibcVersionRuntime ? ` with glibc ${header.glibcVersionRuntime}` : ' without glibc'
}

function entries(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}
