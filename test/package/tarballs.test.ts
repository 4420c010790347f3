import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { root } from '../support/blocks.js'
import { type PackageServer, runBeside, startPackageServer } from '../support/package-server.js'

// The tarballs of scripts/pack.mjs, where no registry has st-moe: as README says, with all of them in one command. The lane
// `package` of .ci/run makes them.

const folder = join(root, 'build/package')
const isPacked = existsSync(folder) && readdirSync(folder).some((name) => name.startsWith('st-moe-linux-x64-glibc-'))
const here = process.platform === 'linux' && process.arch === 'x64'

const command = /npm install (\S*)\*\.tgz/

test('README and docs/releasing.md name all tarballs in one command, and do not offer a name that is not ours', () => {
  const readme = readFileSync(join(root, 'README.md'), 'utf8')
  expect(readme).toMatch(command)
  expect(readFileSync(join(root, 'docs/releasing.md'), 'utf8')).toMatch(command)
  const install = readme.slice(readme.indexOf('## Install'), readme.indexOf('| system'))
  const warning = install.search(/not on npm yet.*names? .*not ours/s)
  expect(warning).toBeGreaterThan(0)
  expect(install.indexOf('npm install st-moe')).toBeGreaterThan(warning)
})

describe.runIf(isPacked && here)('in a project', () => {
  let server: PackageServer
  let work: string
  beforeAll(async () => {
    server = await startPackageServer()
    work = mkdtempSync(join(tmpdir(), 'st-moe-tarballs-'))
    const pack = ['pack', '--ignore-scripts', '--silent', '--pack-destination', work, './node_modules/node-gyp-build']
    const tarball = execFileSync('npm', pack, { cwd: root, encoding: 'utf8' }).trim()
    await runBeside('npm', ['publish', join(work, tarball)], { env: server.env })
  })
  afterAll(() => {
    server.close()
    rmSync(work, { recursive: true, force: true })
  })

  test('one npm install of all installs the addon too', async () => {
    // As `*.tgz` of a `pack.mjs` after `npm run prebuilds -- --own`: no packages of other systems.
    const tarballs = readdirSync(folder).filter((name) => /^st-moe-(linux-x64-glibc-)?\d.*\.tgz$/.test(name))
    expect(tarballs).toHaveLength(2)
    writeFileSync(join(work, 'package.json'), '{ "name": "project", "private": true }')
    const files = tarballs.map((name) => join(folder, name))
    const installed = await runBeside('npm', ['install', '--ignore-scripts', ...files], {
      cwd: work,
      env: server.env,
    })
    expect(installed.status, installed.output).toBe(0)
    expect(existsSync(join(work, 'node_modules/@st-moe/linux-x64-glibc/prebuilds/linux-x64/st-moe.node'))).toBe(true)
    const use = "import { ones } from 'st-moe'; console.log(ones([3]).sum().item())"
    const env = { ...server.env, PREBUILDS_ONLY: '1' }
    const used = await runBeside(process.execPath, ['--input-type=module', '-e', use], { cwd: work, env })
    expect(used).toEqual({ status: 0, output: '3\n' })
  })
})
