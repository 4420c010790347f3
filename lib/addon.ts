import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MoeError } from './errors.js'
import { damageOf } from './library-file.js'

const root = fileURLToPath(new URL('..', import.meta.url))

/**
 * Loads the addon that node-gyp-build selects, one compiled on this machine before a prebuilt one, only from this
 * package or the folder in ST_MOE_PREBUILD. Throws BACKEND_UNAVAILABLE with what was tried, what is needed and the
 * command to run, or OPTION for an ST_MOE_ISA that this machine lacks.
 */
export function loadAddon(): { addon: unknown; file: string } {
  const require = createRequire(import.meta.url)
  let file: string | null = null
  try {
    const found = resolve(require('node-gyp-build').path(root))
    // It also searches next to the Node binary, where foreign files may be.
    if (relative(home(), found).startsWith('..')) throw new Error(`${found} is outside this package`)
    file = found
    const damage = damageOf(found)
    if (damage !== null) throw new Error(damage)
    const addon = require(found)
    if (typeof addon?.setErrorFactory !== 'function') throw new Error('this is not the addon of st-moe')
    return { addon, file: found }
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === 'OPTION') throw new MoeError(code, 'st-moe', message)
    throw new MoeError('BACKEND_UNAVAILABLE', 'st-moe', explanation(file, cause as Error), { cause })
  }
}

/** The folder with build/ and prebuilds/, as for node-gyp-build. */
const home = (): string => process.env.ST_MOE_PREBUILD || root

/** The folders that are searched, in order, and the addons in them. */
export function addonPlaces(): { folder: string; addons: string[] }[] {
  const [built, prebuilds] = [join(home(), 'build', 'Release'), join(home(), 'prebuilds')]
  const prebuilt = entries(prebuilds).flatMap((target) =>
    addonsIn(join(prebuilds, target)).map((name) => join(target, name)),
  )
  return [
    { folder: built, addons: addonsIn(built) },
    { folder: prebuilds, addons: prebuilt },
  ]
}

const addonsIn = (folder: string): string[] => entries(folder).filter((name) => name.endsWith('.node'))

function explanation(file: string | null, cause: Error): string {
  const platform = `${process.platform}-${process.arch}`
  const version = glibc()
  const libc = version ? ` with glibc ${version}` : process.platform === 'linux' ? ' without glibc' : ''
  const reason = cause.message.trim().split('\n', 1)[0]
  const tried = file
    ? [`${file}: ${reason}`]
    : [
        ...addonPlaces().map(
          ({ folder, addons }) => `${folder}: ${addons.length > 0 ? `only ${addons.join(', ')}` : 'no addon'}`,
        ),
        `node-gyp-build: ${reason}`,
      ]
  return [
    `the native addon could not be loaded on ${platform}${libc} (Node ${process.versions.node}, N-API ${process.versions.napi}).`,
    'Tried:',
    ...tried.map((line) => `  ${line}`),
    'Needed: a prebuilt addon that this system can load, or a C++ compiler, make and CMake to build one.',
    `To build it, or to list what is missing for that, run: node ${JSON.stringify(join(root, 'scripts', 'install.cjs'))}`,
  ].join('\n')
}

/** Version of glibc, or null for another C library. */
export function glibc(): string | null {
  const { header } = process.report.getReport() as { header?: { glibcVersionRuntime?: string } }
  return header?.glibcVersionRuntime ?? null
}

function entries(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}
