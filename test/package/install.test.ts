import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { patience } from '../support/patience.js'

/** The install script on machines that lack something: it must say what, and the command that helps. */

const script = fileURLToPath(new URL('../../scripts/install.cjs', import.meta.url))
let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'st-moe-install-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

interface Call {
  installed?: string
  cwd?: string
  env?: NodeJS.ProcessEnv
}

function install(tools: string[], { installed = script, cwd, env }: Call = {}) {
  for (const tool of tools) {
    writeFileSync(join(folder, tool), '#!/bin/sh\nexit 0\n')
    chmodSync(join(folder, tool), 0o755)
  }
  const all = { PATH: folder, npm_config_build_from_source: 'true', ...env }
  return spawnSync(process.execPath, [installed], { cwd, env: all, encoding: 'utf8', timeout: patience })
}

test('names compiler, make and CMake if all are missing', () => {
  const { status, stderr } = install([])
  expect(status).toBe(1)
  expect(stderr).toMatch(/apt-get install g\+\+/)
  expect(stderr).toMatch(/apt-get install make/)
  expect(stderr).toMatch(/apt-get install cmake/)
  expect(stderr).toMatch(/npx st-moe build/)
})

test('names only CMake if only CMake is missing', () => {
  const { status, stderr } = install(['g++', 'make'])
  expect(status).toBe(1)
  expect(stderr).toMatch(/cmake/)
  expect(stderr).not.toMatch(/C\+\+ compiler/)
})

test('CXX may have arguments', () => {
  const { stderr } = install(['make'], { env: { CXX: 'ccache g++ -m64' } })
  expect(stderr).toMatch(/cmake/)
  expect(stderr).not.toMatch(/C\+\+ compiler/)
})

test('a program of the current folder is not run to look for tools', () => {
  const foreign = join(folder, 'foreign')
  mkdirSync(foreign)
  const trace = join(folder, 'trace')
  for (const tool of ['cmake', 'make', 'ninja', 'g++', 'clang++', 'c++']) {
    writeFileSync(join(foreign, tool), `#!/bin/sh\n/bin/echo ${tool} >>${trace}\n`)
    chmodSync(join(foreign, tool), 0o755)
  }
  // Windows looks there first; elsewhere a PATH with `.` does.
  const { status, stderr } = install([], { cwd: foreign, env: { PATH: `.:${folder}` } })
  expect(status).toBe(1)
  expect(stderr).toMatch(/CMake 3\.18\+:/)
  expect(existsSync(trace)).toBe(false)
})

describe('on Windows', () => {
  /** Runs the script as if it were there; `found`: what its vswhere says about Clang. */
  function onWindows(tools: string[], found: string, installed = script) {
    const place = join(folder, 'programs', 'Microsoft Visual Studio', 'Installer')
    mkdirSync(place, { recursive: true })
    writeFileSync(join(place, 'vswhere.exe'), `#!/bin/sh\necho "$@" >'${join(folder, 'asked')}'\necho ${found}\n`)
    chmodSync(join(place, 'vswhere.exe'), 0o755)
    const windows = join(folder, 'windows.cjs')
    writeFileSync(windows, "Object.defineProperty(process, 'platform', { value: 'win32' })")
    const env = { NODE_OPTIONS: `--require ${windows}`, 'ProgramFiles(x86)': join(folder, 'programs') }
    return install(tools, { installed, env: { ...env, PATH: `${folder}:/usr/bin:/bin` } })
  }
  test("names Visual Studio's Clang and its toolset, and CMake", () => {
    const { status, stderr } = onWindows([], '')
    expect(status).toBe(1)
    expect(stderr).toMatch(/Clang: .*Visual Studio.*--toolset ClangCL/)
    expect(stderr).not.toMatch(/apt-get/)
    expect(readFileSync(join(folder, 'asked'), 'utf8')).toMatch(
      /-requires Microsoft\.VisualStudio\.Component\.VC\.Llvm\.Clang/,
    )
  })

  test('does not name what is there', () => {
    writeFileSync(join(folder, 'none.cjs'), readFileSync(script)) // no cmake-js beside it: it always lists something
    const { stderr } = onWindows(['cmake'], 'C:', join(folder, 'none.cjs'))
    expect(stderr).toMatch(/packages: +npm install cmake-js/)
    expect(stderr).not.toMatch(/Clang|CMake|make:/)
  })
})

describe('with a prebuilt addon that loads', () => {
  /** Where loading the addon is this text. */
  function withLoader(text: string, env: NodeJS.ProcessEnv) {
    for (const name of ['scripts', 'dist']) mkdirSync(join(folder, 'package', name), { recursive: true })
    const installed = join(folder, 'package/scripts/install.cjs')
    copyFileSync(script, installed)
    writeFileSync(join(folder, 'package/dist/index.js'), text)
    return install([], { installed, env }).status
  }

  test.each(['false', 'sqlite3', ''])('npm_config_build_from_source=%s is not about this package', (value) => {
    const text = 'process.env.PREBUILDS_ONLY && process.exit(0)'
    expect(withLoader(text, { npm_config_build_from_source: value })).toBe(0)
    expect(withLoader(text, { npm_config_build_from_source: 'sqlite3,st-moe' })).toBe(1)
  })

  test('a wrong ST_MOE_ISA is an error of the import, not of the install', () => {
    const text = 'process.exit(process.env.ST_MOE_ISA ? 1 : 0)'
    expect(withLoader(text, { npm_config_build_from_source: 'false', ST_MOE_ISA: 'wrong' })).toBe(0)
  })
})

describe('tools to compile with', () => {
  const tools = ['g++', 'make', 'cmake']
  let project: string
  let installed: string

  /** A package that says where it was run from. */
  function plant(modules: string) {
    mkdirSync(join(modules, 'cmake-js/bin'), { recursive: true })
    mkdirSync(join(modules, 'node-addon-api'), { recursive: true })
    writeFileSync(join(modules, 'cmake-js/bin/cmake-js'), 'console.log("ran", __filename)')
    writeFileSync(join(modules, 'node-addon-api/package.json'), '{}')
  }

  beforeEach(() => {
    project = realpathSync(folder)
    installed = join(project, 'app/node_modules/st-moe/scripts/install.cjs')
    mkdirSync(dirname(installed), { recursive: true })
    copyFileSync(script, installed)
  })

  test.each(['the folder above the project', 'the current folder', 'INIT_CWD', 'the home folder'])(
    'do not come from %s',
    (where) => {
      const foreign = where === 'the folder above the project' ? project : join(project, 'foreign')
      plant(join(foreign, 'node_modules'))
      plant(join(foreign, '.node_modules'))
      mkdirSync(join(project, 'empty'))
      const { status, stdout, stderr } = install(tools, {
        installed,
        cwd: where === 'the current folder' ? foreign : join(project, 'empty'),
        env: {
          [where === 'INIT_CWD' ? 'INIT_CWD' : 'OTHER']: foreign,
          HOME: where === 'the home folder' ? foreign : '/',
        },
      })
      expect({ status, stdout }).toEqual({ status: 1, stdout: '' })
      expect(stderr).toContain('npm install cmake-js node-addon-api')
    },
  )

  test.each(['app/node_modules', 'app/node_modules/st-moe/node_modules'])('come from %s', (modules) => {
    plant(join(project, modules))
    const { status, stdout } = install(tools, { installed })
    expect({ status, stdout }).toEqual({
      status: 0,
      stdout: `ran ${join(project, modules, 'cmake-js/bin/cmake-js')}\n`,
    })
  })

  test('come from the outer folder of a package that pnpm has linked', () => {
    const inner = join(project, 'app/node_modules/.pnpm/st-moe@1/node_modules/st-moe/scripts/install.cjs')
    mkdirSync(dirname(inner), { recursive: true })
    copyFileSync(script, inner)
    plant(join(project, 'app/node_modules'))
    expect(install(tools, { installed: inner })).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/^ran .*\/app\/node_modules/),
    })
  })
})
