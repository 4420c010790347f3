import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { root } from '../support/blocks.js'

// A clone that was moved or copied with its build folder. CMake refuses such a folder, so it is configured afresh. Its
// CMake here compiles nothing: it does what CMake does about a folder of another place.

const addon = join(root, 'build/Release/st_moe.node')
const cmake = `#!/bin/sh
case "$*" in
  --version) echo 'cmake version 3.30.0' ; exit ;;
esac
here=$PWD/build
cache=$here/CMakeCache.txt
[ ! -e "$cache" ] || grep -qx "CMAKE_CACHEFILE_DIR:INTERNAL=$here" "$cache" || { echo 'CMake Error: another directory' >&2; exit 1; }
mkdir -p build/Release build/CMakeFiles
[ -e "$cache" ] || { echo "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD"; echo "CMAKE_CACHEFILE_DIR:INTERNAL=$here"; } > "$cache"
echo x >> build/CMakeFiles/configured
cp '${addon}' build/Release/st_moe.node
`

let folder: string
const clone = (): string => join(folder, 'clone')

beforeEach(() => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), 'st-moe-moved-')))
  mkdirSync(join(folder, 'bin'))
  writeFileSync(join(folder, 'bin/cmake'), cmake)
  chmodSync(join(folder, 'bin/cmake'), 0o755)
  mkdirSync(clone())
  for (const name of ['scripts', 'package.json', 'CMakeLists.txt'])
    cpSync(join(root, name), join(clone(), name), { recursive: true })
  symlinkSync(join(root, 'node_modules'), join(clone(), 'node_modules'))
})
afterEach(() => rmSync(folder, { recursive: true }))

function run(cwd: string, ...args: string[]) {
  rmSync(join(cwd, 'prebuilds'), { recursive: true, force: true })
  const env = { ...process.env, PATH: `${join(folder, 'bin')}${delimiter}${process.env.PATH}` }
  return spawnSync(process.execPath, args, { cwd, env, encoding: 'utf8' })
}

describe.skipIf(process.platform === 'win32' || !existsSync(addon)).each([
  ['npm pack', ['scripts/prebuilds.mjs', '--own', '--no-cuda']],
  ['npm install', ['scripts/install.cjs']],
])('%s', (_, args) => {
  const configured = (cwd: string): number =>
    spawnSync('wc', ['-l', join(cwd, 'build/CMakeFiles/configured')])
      .stdout.toString()
      .trim()
      .split(' ')
      .map(Number)[0]

  test('works in a clone that was moved, or copied', () => {
    expect(run(clone(), ...args)).toMatchObject({ status: 0 })
    cpSync(clone(), join(folder, 'copy'), { recursive: true, verbatimSymlinks: true })
    const copied = run(join(folder, 'copy'), ...args)
    expect(copied.stderr).toContain(
      `${join(folder, 'copy/build')} was configured at another place: it is configured afresh`,
    )
    expect(copied.status).toBe(0)
    renameSync(clone(), join(folder, 'moved'))
    expect(run(join(folder, 'moved'), ...args)).toMatchObject({ status: 0 })
    if (args[0].includes('prebuilds')) expect(readdirSync(join(folder, 'moved/prebuilds'))).toHaveLength(1)
  })

  test('keeps the build folder of a clone that stays, also by another name', () => {
    expect(run(clone(), ...args)).toMatchObject({ status: 0 })
    const before = configured(clone())
    symlinkSync(clone(), join(folder, 'link'))
    const again = run(join(folder, 'link'), ...args)
    expect(again.stderr).not.toContain('afresh')
    expect(again.status).toBe(0)
    expect(configured(clone())).toBeGreaterThan(before)
  })
})
