import { spawnSync } from 'node:child_process'
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { ownTarget } from '../../scripts/targets.mjs'
import { patience } from '../support/patience.js'

/** An installed package whose addon or plugin is missing or damaged: a described error, and never a crash. */

const root = fileURLToPath(new URL('../..', import.meta.url))
const addon = readFileSync(join(root, 'build/Release/st_moe.node'))
const zeroTail = (bytes: Buffer) => Buffer.concat([bytes.subarray(0, bytes.length / 2), Buffer.alloc(bytes.length / 2)])
const damages: [name: string, bytes: Buffer, reason: RegExp][] = [
  ['empty', Buffer.alloc(0), /the file is empty/],
  ['garbage', Buffer.from('garbage '.repeat(999)), /invalid ELF header/],
  ['three bytes', Buffer.from('abc'), /file too short/],
  ['cut in its header', addon.subarray(0, 40), /file too short/],
  ['cut in the middle', addon.subarray(0, addon.length / 2), /damaged: it has \d+ bytes, its header requires \d+/],
  ['cut by one byte', addon.subarray(0, -1), /damaged: it has \d+ bytes, its header requires \d+/],
  ['zeros to the end', zeroTail(addon), /damaged: its section table is invalid/],
]

let installed: string
let prebuilds: string

beforeEach(() => {
  installed = realpathSync(mkdtempSync(join(tmpdir(), 'st-moe-broken-')))
  prebuilds = join(installed, 'prebuilds', `${process.platform}-${process.arch}`)
  mkdirSync(join(installed, 'node_modules'))
  mkdirSync(prebuilds, { recursive: true })
  copyFileSync(join(root, 'package.json'), join(installed, 'package.json'))
  cpSync(join(root, 'dist'), join(installed, 'dist'), { recursive: true })
  symlinkSync(join(root, 'node_modules/node-gyp-build'), join(installed, 'node_modules/node-gyp-build'))
})
afterEach(() => rmSync(installed, { recursive: true, force: true }))

/** The result of a program that imports the package; exit code 0 if it could catch the error. */
function use(): { error?: { code: string; message: string }; devices?: Record<string, unknown>[]; sum?: number } {
  const program = `
    try {
      const { devices, ones } = await import('./dist/index.js')
      console.log(JSON.stringify({ devices: devices(), sum: ones([2, 3]).sum().item() }))
    } catch ({ code, message }) {
      console.log(JSON.stringify({ error: { code, message } }))
    }`
  const { ST_MOE_CUDA_LIBRARY, ST_MOE_PREBUILD, ...env } = process.env
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    cwd: installed,
    env,
    encoding: 'utf8',
    timeout: patience,
  })
  expect(child).toMatchObject({ status: 0, signal: null, stderr: '' })
  return JSON.parse(child.stdout)
}

function expectExplained(tried: RegExp) {
  const { error } = use()
  expect(error?.code).toBe('BACKEND_UNAVAILABLE')
  const { message } = error!
  expect(message).toContain(`the native addon could not be loaded on ${process.platform}-${process.arch}`)
  expect(message).toMatch(tried)
  expect(message).toMatch(/Needed: .*C\+\+ compiler, make and CMake/)
  expect(message).toContain('run: npx st-moe build')
}

test.each(['esm', 'cjs'] as const)('code that a bundler has moved away from its addon says so: %s', async (format) => {
  const outfile = join(installed, 'app', format === 'esm' ? 'bundle.mjs' : 'bundle.cjs')
  const contents = `import { ones } from './dist/index.js'
try { ones([1]) } catch ({ code, message }) { console.log(JSON.stringify({ code, message })) }`
  const stdin = { contents, resolveDir: installed }
  await build({
    stdin,
    bundle: true,
    platform: 'node',
    format,
    outfile,
    logLevel: 'error',
    external: ['node-gyp-build'],
  })
  for (const name of ['dist', 'node_modules', 'package.json']) rmSync(join(installed, name), { recursive: true })
  writeFileSync(join(installed, 'package.json'), '{ "name": "app" }')
  const { stdout, stderr } = spawnSync(process.execPath, [outfile], {
    cwd: installed,
    encoding: 'utf8',
    timeout: patience,
  })
  expect(stderr).toBe('')
  const { code, message } = JSON.parse(stdout)
  expect(code).toBe('BACKEND_UNAVAILABLE')
  expect(message).toMatch(
    /^\[st-moe\] the native addon was left behind: a bundler has put the code of this package into /,
  )
  expect(message).toContain('--external:st-moe')
})

describe('the addon', () => {
  test('missing', () => expectExplained(/Tried:\n.*build\/Release: no addon\n.*prebuilds: no addon\n/))

  test('for another C library alone', () => {
    writeFileSync(join(prebuilds, 'st-moe.other.musl.node'), addon)
    expectExplained(/prebuilds: only linux-\w+\/st-moe\.other\.musl\.node\n/)
  })

  test.each(damages)('%s', (_name, bytes, reason) => {
    writeFileSync(join(prebuilds, 'st-moe.glibc.node'), bytes)
    expectExplained(new RegExp(`Tried:\n.*st-moe\\.glibc\\.node: .*${reason.source}`))
  })

  test('next to the running program, or in parent folders, is ignored', () => {
    const above = join(installed, 'node_modules/st-moe')
    for (const name of ['package.json', 'dist']) cpSync(join(installed, name), join(above, name), { recursive: true })
    for (const folder of ['build/Release', `prebuilds/${process.platform}-${process.arch}`]) {
      mkdirSync(join(installed, folder), { recursive: true })
      for (const name of ['st_moe.node', 'st-moe.glibc.node']) writeFileSync(join(installed, folder, name), addon)
    }
    const program = join(installed, 'node') // node-gyp-build finds the prebuilds next to it
    copyFileSync(process.execPath, program)
    const { ST_MOE_PREBUILD, ...env } = process.env
    const { status, stdout } = spawnSync(program, [join(above, 'dist/cli.js'), 'doctor'], { env, encoding: 'utf8' })
    expect(status).toBe(1)
    expect(stdout).toMatch(/^addon +not loaded$/m)
    expect(stdout).toContain(`${join(above, 'prebuilds')}: no addon`)
    expect(stdout).toContain(`${join(prebuilds, 'st-moe.glibc.node')} is outside this package`)
  })

  test('another library', () => {
    const [libm] = /\/\S*libm\.so\.6/.exec(readFileSync('/proc/self/maps', 'utf8')) ?? []
    copyFileSync(libm!, join(prebuilds, 'st-moe.glibc.node'))
    expectExplained(/st-moe\.glibc\.node: .*did not self-register/)
  })
})

describe('packages of their own', () => {
  function install(name: string, file: string, bytes: Buffer): string {
    const folder = join(installed, 'node_modules', name)
    mkdirSync(dirname(join(folder, file)), { recursive: true })
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ name }))
    writeFileSync(join(folder, file), bytes)
    return join(folder, file)
  }
  const name = `@st-moe/${ownTarget()}`
  const file = `prebuilds/${process.platform}-${process.arch}/st-moe.node`
  const plugin = `${process.platform}-${process.arch}/libst_moe_cuda.so`

  test('the addon of this system is found', () => {
    install(name, file, addon)
    expect(use().sum).toBe(6)
  })

  test('ST_MOE_PREBUILD is the only place to search', () => {
    install(name, file, addon)
    const env = { ...process.env, ST_MOE_PREBUILD: '/nowhere' }
    const program = `const { ones } = await import('./dist/index.js'); ones([1])`
    const { status, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
      cwd: installed,
      env,
      encoding: 'utf8',
    })
    expect(status).toBe(1)
    expect(stderr).toContain('/nowhere/prebuilds: no addon')
    expect(stderr).toContain('No other folder is searched while ST_MOE_PREBUILD is set.')
  })

  test('a damaged one is explained', () => {
    const at = install(name, file, addon.subarray(0, -1))
    expectExplained(new RegExp(`  ${at.replaceAll('.', '\\.')}: the file is damaged: it has`))
  })

  test('one that is not installed is named', () => {
    const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
    const optionalDependencies = { [name]: manifest.version }
    writeFileSync(join(installed, 'package.json'), JSON.stringify({ ...manifest, optionalDependencies }))
    expect(use().error?.message).toContain(`\nNeeded: ${name}@${manifest.version} (package managers install it`)
  })

  test('the plugin of st-moe-cuda is found, one beside the addon before it', () => {
    writeFileSync(join(prebuilds, 'st-moe.glibc.node'), addon)
    const at = install('st-moe-cuda', plugin, Buffer.from('abc'))
    expect(use().devices?.[1].reason).toContain(`${at}: file too short`)
    writeFileSync(join(prebuilds, 'libst_moe_cuda.so'), Buffer.alloc(0))
    expect(use().devices?.[1].reason).toContain(`${join(prebuilds, 'libst_moe_cuda.so')}: the file is empty`)
  })
})

describe('the plugin', () => {
  beforeEach(() => writeFileSync(join(prebuilds, 'st-moe.glibc.node'), addon))

  function expectCpuAnd(reason: RegExp) {
    const { devices, sum } = use()
    expect(sum).toBe(6)
    expect(devices?.[0]).toMatchObject({ device: 'cpu', available: true })
    expect(devices?.[1]).toMatchObject({ device: 'cuda', available: false, stage: 'plugin' })
    expect(devices?.[1].reason).toContain(join(prebuilds, 'libst_moe_cuda.so'))
    expect(devices?.[1].reason).toMatch(reason)
  }

  test('missing: it says that the package has none, and how to get one', () => {
    expectCpuAnd(
      /^the CUDA plugin is not installed \(.*\)\. (In a clone run: npm run build:cuda; st-moe-cuda is not on npm yet|There is no)/,
    )
    const { ST_MOE_CUDA_LIBRARY, ST_MOE_PREBUILD, ...env } = process.env
    const doctor = (...args: string[]) =>
      spawnSync(process.execPath, [join(installed, 'dist/cli.js'), 'doctor', ...args], { env, encoding: 'utf8' })
    expect(doctor().stdout).toMatch(/^CUDA plugin +not installed$/m)
    expect(JSON.parse(doctor('--json').stdout)).toMatchObject({ healthy: true, plugin: null })
  })

  test.each(damages)('%s', (_name, bytes, reason) => {
    writeFileSync(join(prebuilds, 'libst_moe_cuda.so'), bytes)
    expectCpuAnd(reason)
  })

  test.skipIf(process.platform === 'win32')('a pipe that nobody writes to', () => {
    spawnSync('mkfifo', [join(prebuilds, 'libst_moe_cuda.so')])
    expectCpuAnd(/it is not a regular file/)
  })

  test('another library', () => {
    writeFileSync(join(prebuilds, 'libst_moe_cuda.so'), addon)
    expectCpuAnd(/is not an st-moe plugin/)
  })
})
