import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MoeError, packageName } from './errors.js'
import { damageOf } from './library-file.js'

/** This file. A bundler that makes CommonJS leaves out where it is: then the folder of the process counts. */
const here = import.meta.url ? fileURLToPath(import.meta.url) : join(process.cwd(), 'bundle')

/** The root of this package: the nearest folder above that has a package.json. Sources and built files lie at other depths. */
function findRoot(): string {
  let folder = dirname(here)
  while (!existsSync(join(folder, 'package.json')) && dirname(folder) !== folder) folder = dirname(folder)
  return folder
}

export const packageRoot = findRoot()

/**
 * Loads the addon: one compiled on this machine, else a prebuilt one of this package, else that of the package of this
 * system; only from the folder in ST_MOE_PREBUILD if that is set. Throws BACKEND_UNAVAILABLE with what was tried, what is
 * needed and the command to run, or OPTION for an ST_MOE_ISA that this machine lacks.
 */
export function loadAddon(): { addon: unknown; file: string } {
  const require = createRequire(here)
  let file: string | null = null
  try {
    const found = findAddon(require('node-gyp-build').path)
    file = found
    const damage = damageOf(found)
    if (damage !== null) throw new Error(damage)
    const addon = require(found)
    if (typeof addon?.setErrorFactory !== 'function') throw new Error('this is not the addon of st-moe')
    return { addon, file: found }
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === 'OPTION') throw new MoeError(code, packageName, message)
    throw new MoeError('BACKEND_UNAVAILABLE', packageName, explanation(file, cause as Error), { cause })
  }
}

/** The folder with build/ and prebuilds/, as for node-gyp-build. */
const home = (): string => process.env.ST_MOE_PREBUILD || packageRoot

/** The name of this system in scripts/targets.mjs, such as linux-x64-glibc. */
export function systemName(): string {
  const { platform, arch } = process
  const libc = platform === 'linux' ? [glibc() ? 'glibc' : 'musl'] : []
  return [platform, arch, ...libc].join('-')
}

const systemPackage = (): string => `@st-moe/${systemName()}`

/** The folder of another package, if it is installed where this one may use it. */
export function folderOf(name: string): string | null {
  try {
    return dirname(createRequire(here).resolve(`${name}/package.json`))
  } catch {
    return null
  }
}

/** The folder of the package with the addon of this system, if that is to be searched. */
const systemFolder = (): string | null => (process.env.ST_MOE_PREBUILD ? null : folderOf(systemPackage()))

function findAddon(nodeGypBuild: (folder: string) => string): string {
  try {
    const found = resolve(nodeGypBuild(packageRoot))
    // It also searches next to the Node binary, where foreign files may be.
    if (relative(home(), found).startsWith('..')) throw new Error(`${found} is outside this package`)
    return found
  } catch (cause) {
    const installed = systemFolder()
    const addon = installed && prebuiltIn(installed)[0]
    if (!addon) throw cause
    return join(installed, 'prebuilds', addon)
  }
}

/** The folders that are searched, in order, and the addons in them. */
export function addonPlaces(): { folder: string; addons: string[] }[] {
  const built = join(home(), 'build', 'Release')
  const own = [
    { folder: built, addons: addonsIn(built) },
    { folder: join(home(), 'prebuilds'), addons: prebuiltIn(home()) },
  ]
  if (process.env.ST_MOE_PREBUILD) return own
  const installed = systemFolder()
  return [...own, { folder: installed ?? systemPackage(), addons: installed ? prebuiltIn(installed) : [] }]
}

const prebuiltIn = (folder: string): string[] =>
  entries(join(folder, 'prebuilds')).flatMap((target) =>
    addonsIn(join(folder, 'prebuilds', target)).map((name) => join(target, name)),
  )

const addonsIn = (folder: string): string[] => entries(folder).filter((name) => name.endsWith('.node'))

/** The package.json of the root: of another package, or of none, if a bundler has moved the code. */
function manifest(): { name?: string; version?: string; optionalDependencies?: Record<string, string> } {
  const file = join(packageRoot, 'package.json')
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {}
}

function explanation(file: string | null, cause: Error): string {
  if (manifest().name !== packageName)
    return [
      `the native addon was left behind: a bundler has put the code of this package into ${here}.`,
      'Keep the package out of the bundle (esbuild: --external:st-moe) and install it beside the bundle.',
      'docs/packaging.md, "Bundlers", says how other bundlers do it.',
    ].join('\n')
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
  const tools = process.platform === 'win32' ? "Visual Studio's Clang and CMake" : 'a C++ compiler, make and CMake'
  return [
    `the native addon could not be loaded on ${platform}${libc} (Node ${process.versions.node}, N-API ${process.versions.napi}).`,
    'Tried:',
    ...tried.map((line) => `  ${line}`),
    ...(process.env.ST_MOE_PREBUILD ? ['No other folder is searched while ST_MOE_PREBUILD is set.'] : []),
    `Needed: ${prebuiltPackage() ?? 'a prebuilt addon that this system can load'}, or ${tools} to build one.`,
    'To build it, or to list what is missing for that, run: npx st-moe build',
  ].join('\n')
}

/** The package of this system in the words of the error; null if this version of st-moe has none for it. */
function prebuiltPackage(): string | null {
  const { optionalDependencies, version } = manifest()
  const name = systemPackage()
  return Object.hasOwn(optionalDependencies ?? {}, name)
    ? `${name}@${version} (package managers install it unless optional dependencies are left out)`
    : null
}

let glibcVersion: string | null | undefined

/** Version of glibc, or null for another C library. */
export function glibc(): string | null {
  if (glibcVersion !== undefined) return glibcVersion
  const report: NodeJS.ProcessReport & { excludeNetwork?: boolean } = process.report
  const { excludeNetwork } = report
  report.excludeNetwork = true // else it asks DNS for both ends of every socket, and waits
  const { header } = report.getReport() as { header?: { glibcVersionRuntime?: string } }
  report.excludeNetwork = excludeNetwork
  glibcVersion = header?.glibcVersionRuntime ?? null
  return glibcVersion
}

function entries(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}
