// Installs the packages of scripts/pack.mjs on each runtime as users do, trains a layer with them, and runs `st-moe
// doctor`: without network or compiler, and with only the runtime and the basic programs that installers call in PATH.
//
//   node scripts/install-matrix.mjs [--quick] [--compile] [--emulate] [--electron FILE] [--only TEXT]
//
// --quick: the oldest Node and Bun, npm and pnpm. --compile: also from source. --emulate: also Node for the
// other systems of emulators.mjs. --electron: also the program of Electron in FILE, which npm's package downloads from
// elsewhere. --only: cases whose name contains TEXT. The tools are packages of the npm registry and stay in build/matrix.
import { execFileSync, spawnSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { emulators, lackOf, nodeOf, runOn } from './emulators.mjs'
import { files } from './install-matrix-files.mjs'
import { fetchTools, installersOf, pathWith, runtimesOf, toolFile, which } from './install-matrix-tools.mjs'
import { systemOf, targets } from './targets.mjs'

const { values: options } = parseArgs({
  options: {
    quick: { type: 'boolean' },
    compile: { type: 'boolean' },
    emulate: { type: 'boolean' },
    electron: { type: 'string' },
    only: { type: 'string', default: '' },
  },
})
const root = fileURLToPath(new URL('..', import.meta.url))
const { bin, version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
const packed = (name) => path.join(root, 'build/package', `${name}-${version}.tgz`)
const tarball = packed('st-moe')
/** The packages with an addon. */
const addons = Object.fromEntries(
  Object.keys(targets)
    .map((target) => [`@st-moe/${target}`, packed(`st-moe-${target}`)])
    .filter(([, file]) => existsSync(file)),
)
const { platform, arch } = process
const windows = platform === 'win32'

// --- The tools: runtimes, installers, checkers ---

const runtimes = runtimesOf(`${platform}-${arch}`)
const installers = installersOf(`${platform}-${arch}`)

const oldest = Object.keys(runtimes)[0]
const chosenRuntimes = Object.keys(runtimes).filter((name) => !options.quick || [oldest, 'bun'].includes(name))
const chosenInstallers = options.quick ? ['npm without scripts', 'pnpm'] : Object.keys(installers)

const chosenTools = [
  ...chosenRuntimes,
  ...chosenInstallers.map((name) => installers[name].tool),
  ...['esbuild', 'publint', '@arethetypeswrong/cli'],
]

// --- The projects ---

/** How a program is started: the file, and what has to make it. */
const uses = {
  CommonJS: 'main.cjs',
  module: 'main.mjs',
  worker: 'worker.mjs',
  bundle: 'bundle.mjs',
  TypeScript: 'typed-module.mjs',
}

// --- Running without network, with few programs in PATH ---

const work = realpathSync(mkdtempSync(path.join(tmpdir(), 'st-moe matrix é-')))
process.on('exit', () => rmSync(work, { recursive: true, force: true }))

const cutOff = [
  ['unshare', '-n'],
  ['unshare', '-rn'],
].find(([command, ...args]) => spawnSync(command, [...args, 'true']).status === 0)
if (!cutOff)
  console.log('note: this system does not allow cutting off the network (unshare -n); only invalid proxies are set')
const nowhere = 'http://127.0.0.1:9'

function run(command, args, { cwd, PATH, env = {} }) {
  const [program, ...rest] = [...(cutOff ? [which(cutOff[0]), ...cutOff.slice(1)] : []), command, ...args]
  const home = path.join(work, 'home')
  const offline = {
    npm_config_registry: nowhere,
    HTTP_PROXY: nowhere,
    HTTPS_PROXY: nowhere,
    YARN_ENABLE_TELEMETRY: '0',
  }
  const result = spawnSync(program, rest, {
    cwd,
    env: { PATH, HOME: home, TMPDIR: work, CI: '1', ...offline, ...env },
    encoding: 'utf8',
    timeout: 300_000,
  })
  return { ok: result.status === 0, output: `${result.stdout}${result.stderr}${result.error ?? ''}`.trim() }
}

// --- The cases ---

let passed = 0
let failed = 0
let skipped = 0
const losses = {} // of each architecture

function check(name, { ok, output }) {
  if (ok) passed++
  else failed++
  console.log(`${ok ? 'ok    ' : 'FAILED'} ${name}`)
  if (!ok)
    console.log(
      output
        .split('\n')
        .slice(0, 30)
        .map((line) => `         ${line}`)
        .join('\n'),
    )
  return ok
}

/** Every runtime of an architecture must print the same losses, to the last bit. */
function trained({ ok, output }, machine = arch) {
  const line = /^losses .*$/m.exec(output)?.[0]
  losses[machine] ??= line
  if (line === losses[machine]) return { ok: ok && line !== undefined, output }
  return { ok: false, output: `${output}\nexpected ${losses[machine]}` }
}

/** What `st-moe doctor --json` says about the package in `folder`: all well, with an addon that came in the tarball. */
function healthy({ ok, output }, folder) {
  try {
    const { healthy, addon } = JSON.parse(output)
    return { ok: ok && healthy && addon.startsWith(path.join(realpathSync(folder), 'node_modules')), output }
  } catch {
    return { ok: false, output }
  }
}

/** A project that depends on the tarballs; all that these need is a file too, so that no registry is asked. */
function makeProject(name, installer, dependency) {
  const folder = path.join(work, name.replaceAll(' ', '-'))
  mkdirSync(folder)
  const file = (name) => `file:${name}`
  const needed = { 'node-gyp-build': file(dependency) }
  const optional = Object.fromEntries(Object.entries(addons).map(([addon, packedAt]) => [addon, file(packedAt)]))
  const manifest = {
    name: 'project',
    private: true,
    main: 'electron.mjs',
    dependencies: { 'st-moe': file(tarball), ...needed },
    optionalDependencies: optional,
    resolutions: { ...needed, ...optional },
  }
  writeFileSync(path.join(folder, 'package.json'), JSON.stringify(manifest))
  const overrides = Object.entries({ ...needed, ...optional }).map(([from, to]) => `  ${JSON.stringify(from)}: ${to}\n`)
  writeFileSync(path.join(folder, 'pnpm-workspace.yaml'), `overrides:\n${overrides.join('')}`)
  if (installer.linker) {
    writeFileSync(
      path.join(folder, '.yarnrc.yml'),
      `nodeLinker: ${installer.linker}\nenableGlobalCache: false\nenableImmutableInstalls: false\n`,
    )
    writeFileSync(path.join(folder, 'yarn.lock'), '')
  }
  for (const [file, text] of Object.entries(files)) writeFileSync(path.join(folder, file), text)
  return folder
}

/** Makes bundle.mjs and typed-module.mjs: the tools run here, their products there. */
function compileProject(name, folder, pnp) {
  const modules = path.join(folder, 'node_modules/@types')
  if (!pnp) {
    mkdirSync(modules, { recursive: true })
    symlinkSync(path.join(root, 'node_modules/@types/node'), path.join(modules, 'node'), 'junction')
  }
  const node = process.execPath
  const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc')
  const esbuild = [
    toolFile('esbuild', 'bin/esbuild'),
    'main.mjs',
    '--bundle',
    '--platform=node',
    '--format=esm',
    '--external:st-moe',
  ]
  const here = { cwd: folder, PATH: process.env.PATH }
  check(`${name}: esbuild`, run(node, [...esbuild, '--outfile=bundle.mjs'], here))
  if (!pnp) check(`${name}: tsc`, run(node, [tsc, '-p', '.'], here))
}

function useProject(name, folder, pnp) {
  for (const runtime of chosenRuntimes) {
    const { file, args } = runtimes[runtime]
    if (pnp && !runtime.startsWith('node')) continue
    const program = toolFile(runtime, file)
    const PATH = pathWith(runtime.startsWith('node') ? program : null, work)
    const env = pnp ? { NODE_OPTIONS: '--require ./.pnp.cjs --loader ./.pnp.loader.mjs' } : {}
    for (const [use, main] of Object.entries(uses)) {
      if (pnp && use === 'TypeScript') continue
      const result = run(program, [...args, main], { cwd: folder, PATH, env })
      check(`${name}: ${runtime}: ${use}`, trained(result))
    }
    if (pnp) continue // no file of the package to start
    const doctor = [...args, path.join('node_modules/st-moe', bin['st-moe']), 'doctor', '--json']
    check(`${name}: ${runtime}: doctor`, healthy(run(program, doctor, { cwd: folder, PATH, env }), folder))
    // The program that npx starts. Other installers create a shell script there.
    if (windows || !name.startsWith('npm') || !runtime.startsWith('node')) continue
    const linked = path.join(folder, 'node_modules/.bin/st-moe')
    check(`${name}: ${runtime}: npx`, healthy(run(linked, ['doctor', '--json'], { cwd: folder, PATH, env }), folder))
  }
}

function install(name, dependency) {
  const installer = installers[name]
  const folder = makeProject(name, installer, dependency)
  const own = options.quick ? oldest : ['node-24', 'node-26'].find((candidate) => candidate in runtimes)
  const node = toolFile(own, runtimes[own].file)
  const command = installer.native
    ? [toolFile(installer.tool, installer.file)]
    : [node, toolFile(installer.tool, installer.file)]
  const result = run(command[0], [...command.slice(1), ...installer.args], { cwd: folder, PATH: pathWith(node, work) })
  if (!check(`${name}: install`, result)) return
  compileProject(name, folder, installer.pnp)
  useProject(name, folder, installer.pnp)
}

/** Installs a project by npm, with the Node of this process; its folder, or null if that failed. */
function installByNpm(name, dependency, flags = []) {
  const installer = installers['npm without scripts']
  const folder = makeProject(name, installer, dependency)
  const npm = [toolFile(installer.tool, installer.file), ...installer.args, ...flags]
  const result = run(process.execPath, npm, { cwd: folder, PATH: process.env.PATH })
  return check(`${name}: install`, result) ? folder : null
}

/** Another system: installed for it, and run by its emulator. */
async function emulate(target, dependency) {
  const lack = lackOf(target)
  if (lack || !addons[`@st-moe/${target}`]) {
    skipped++
    console.log(`skip   ${target}: ${lack ?? 'it was not packed'}`)
    return
  }
  const { platform: os, arch: cpu, libc } = systemOf(target)
  const flags = [`--os=${os}`, `--cpu=${cpu}`, ...(libc ? [`--libc=${libc}`] : [])]
  const folder = installByNpm(target, dependency, flags)
  if (!folder) return
  const node = async (...args) => {
    const { ok, stdout, stderr } = await runOn(target, nodeOf(target), args, { cwd: folder })
    return { ok, output: ok ? stdout : `${stdout}${stderr}` }
  }
  for (const use of ['CommonJS', 'module', 'worker']) check(`${target}: ${use}`, trained(await node(uses[use]), cpu))
  const { ok, output } = await node(`node_modules/st-moe/${bin['st-moe']}`, 'doctor', '--json')
  const report = ok ? JSON.parse(output) : null
  check(`${target}: doctor`, { ok: ok && report.healthy && report.addon.includes(target), output })
}

/** In each kind of process of an app. */
function electron(program, dependency) {
  const folder = installByNpm('electron', dependency)
  if (!folder) return
  // Linux: a screen in memory, whose files must be in a folder without spaces; no sandbox, which root cannot have; a
  // locale, without which the path of a preload script must be ASCII.
  const [command, ...flags] = platform === 'linux' ? ['xvfb-run', '-a', program, '--no-sandbox'] : [program]
  const here = { cwd: folder, PATH: process.env.PATH }
  const env = { TMPDIR: tmpdir(), LANG: 'C.UTF-8' }
  for (const use of ['main', 'worker', 'utility', 'preload'])
    check(`electron: ${use}`, trained(run(command, [...flags, '.', use], { ...here, env })))
  const doctor = [path.join('node_modules/st-moe', bin['st-moe']), 'doctor', '--json']
  check('electron: doctor', healthy(run(program, doctor, { ...here, env: { ELECTRON_RUN_AS_NODE: '1' } }), folder))
}

/** From source, with the tools of this machine: what the tarball holds must be enough. */
function compile(dependency) {
  const folder = installByNpm('compile', dependency)
  if (!folder) return
  const here = { cwd: folder, PATH: process.env.PATH }
  const installed = path.join(folder, 'node_modules/st-moe')
  rmSync(path.join(folder, 'node_modules/@st-moe'), { recursive: true, force: true })
  for (const name of ['cmake-js', 'node-addon-api']) {
    symlinkSync(path.join(root, 'node_modules', name), path.join(folder, 'node_modules', name), 'junction')
  }
  const build = [path.join(installed, bin['st-moe']), 'build']
  if (!check('compile: from source', run(process.execPath, build, here))) return
  check('compile: module', trained(run(process.execPath, ['main.mjs'], here)))
}

/** On a system without an addon: the import works, help and doctor do, and the first call says what is missing. */
function withoutAddon(dependency) {
  const folder = installByNpm('no-addon', dependency)
  if (!folder) return
  rmSync(path.join(folder, 'node_modules/@st-moe'), { recursive: true, force: true })
  const here = { cwd: folder, PATH: process.env.PATH }
  const program = (...args) => run(process.execPath, [path.join('node_modules/st-moe', bin['st-moe']), ...args], here)
  const first = `
    import { MoeError, ones } from 'st-moe'
    import { CharacterTokenizer } from 'st-moe/language-model'
    if (CharacterTokenizer.of('ab').size !== 2) throw new Error('no tokens')
    try { ones([1]) } catch (error) { if (error instanceof MoeError) console.log(error.code) }`
  const imported = run(process.execPath, ['--input-type=module', '-e', first], here)
  check('no addon: import', { ok: imported.ok && imported.output === 'BACKEND_UNAVAILABLE', output: imported.output })
  const all = program('--help')
  const commands = Array.from(all.output.matchAll(/^ {2}st-moe (\w+) /gm), ([, name]) => name)
  check('no addon: --help', { ok: all.ok && commands.length >= 6, output: all.output })
  for (const name of commands) check(`no addon: ${name} --help`, program(name, '--help'))
  const { ok, output } = program('doctor')
  check('no addon: doctor', { ok: !ok && /^addon +not loaded$/m.test(output), output })
}

function checkPackage() {
  const here = { cwd: root, PATH: process.env.PATH }
  check('publint', run(process.execPath, [toolFile('publint', 'src/cli.js'), tarball, '--strict'], here))
  // The package is ESM; every Node of `engines` can require() it from CommonJS, which this rule does not know.
  const types = [toolFile('@arethetypeswrong/cli', 'dist/index.js'), tarball, '--ignore-rules', 'cjs-resolves-to-esm']
  check('are the types wrong', run(process.execPath, types, here))
}

fetchTools(chosenTools)
const gypBuild = path.join(root, 'node_modules/node-gyp-build')
const packing = ['pack', '--ignore-scripts', '--silent', '--pack-destination', work, gypBuild]
const dependency = path.join(work, execFileSync('npm', packing, { encoding: 'utf8', shell: windows }).trim())
console.log(`${path.basename(tarball)}, ${cutOff ? 'no network' : 'invalid proxies'}, work in ${work}`)
const wanted = (name) => name.includes(options.only)
if (wanted('package')) checkPackage()
for (const name of chosenInstallers.filter(wanted)) install(name, dependency)
if (wanted('no-addon')) withoutAddon(dependency)
if (options.emulate) for (const target of Object.keys(emulators).filter(wanted)) await emulate(target, dependency)
if (options.electron && wanted('electron')) electron(path.resolve(options.electron), dependency)
if (options.compile && wanted('compile')) compile(dependency)
console.log(`${passed} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ''}`)
if (failed > 0 || passed === 0) process.exitCode = 1
