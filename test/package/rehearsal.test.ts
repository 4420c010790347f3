import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { fetchTools, toolFile } from '../../scripts/install-matrix-tools.mjs'
import { type Packed, readPackages } from '../../scripts/publish.mjs'
import { root } from '../support/blocks.js'
import { long } from '../support/numbers.js'
import { type PackageServer, runBeside, startPackageServer } from '../support/package-server.js'

// A release into a registry on the loopback device: the tarballs of scripts/pack.mjs, published with a failure at each of
// them, and installed by each package manager. Minutes.

const folder = join(root, 'build/package')

describe.runIf(long)('the rehearsal of a release', () => {
  const work = mkdtempSync(join(tmpdir(), 'st-moe-rehearsal-'))
  let packages: Packed[] = []
  let server: PackageServer

  const publish = (to: PackageServer) =>
    runBeside(process.execPath, ['scripts/publish.mjs'], { cwd: root, env: to.env })

  beforeAll(async () => {
    if (!existsSync(folder)) execFileSync('node', ['scripts/pack.mjs'], { cwd: root })
    packages = readPackages(folder)
    server = await startPackageServer()
    fetchTools(['npm', 'npm-12', 'pnpm', 'yarn', 'yarn-4', 'bun'])
    // What st-moe depends on.
    const pack = ['pack', '--ignore-scripts', '--silent', '--pack-destination', work, './node_modules/node-gyp-build']
    const tarball = execFileSync('npm', pack, { cwd: root, encoding: 'utf8' }).trim()
    const { status, output } = await runBeside('npm', ['publish', join(work, tarball)], { env: server.env })
    expect(status, output).toBe(0)
  })
  afterAll(() => {
    server.close()
    rmSync(work, { recursive: true, force: true })
  })

  test('a failure at any package leaves a release that the next run finishes', async () => {
    expect(packages.length).toBeGreaterThan(1)
    const names = packages.map(({ manifest }) => manifest.name)
    for (const [i, name] of names.entries()) {
      const own = await startPackageServer()
      try {
        const fault = i % 2 === 0 ? 'refuse' : 'lose'
        own.faults.set(name, fault)
        expect((await publish(own)).status, name).not.toBe(0)
        expect(own.order).toEqual(names.slice(0, fault === 'lose' ? i + 1 : i))
        own.faults.clear()
        const { status, output } = await publish(own)
        expect(status, output).toBe(0)
        expect(own.order).toEqual(names)
        for (const { manifest, integrity } of packages)
          expect(own.packages.get(manifest.name)!.versions[manifest.version]!.dist.integrity).toBe(integrity)
      } finally {
        own.close()
      }
    }
  })

  const node = process.execPath
  test.each([
    ['npm', () => [node, toolFile('npm', 'bin/npm-cli.js'), 'install', 'st-moe']],
    ['npm 12', () => [node, toolFile('npm-12', 'bin/npm-cli.js'), 'install', 'st-moe']],
    ['pnpm', () => [node, toolFile('pnpm', 'bin/pnpm.mjs'), 'add', 'st-moe', '--store-dir', join(work, 'store')]],
    ['yarn', () => [node, toolFile('yarn', 'bin/yarn.js'), 'add', 'st-moe', '--cache-folder', join(work, 'yarn')]],
    ['yarn 4', () => [node, toolFile('yarn-4', 'bin/yarn.js'), 'add', 'st-moe']],
    ['bun', () => [toolFile('bun', 'bin/bun'), 'add', 'st-moe']],
  ])('%s installs it, with the addon of this machine', async (name, command) => {
    if (!server.packages.has('st-moe')) expect((await publish(server)).status).toBe(0)
    const project = mkdtempSync(join(work, 'project-'))
    writeFileSync(join(project, 'package.json'), '{ "name": "project", "private": true }')
    writeFileSync(join(project, 'pnpm-workspace.yaml'), 'allowBuilds:\n  st-moe: false\n')
    if (name === 'yarn 4') {
      writeFileSync(join(project, '.yarnrc.yml'), 'nodeLinker: node-modules\nnpmMinimalAgeGate: 0\n')
      writeFileSync(join(project, 'yarn.lock'), '')
    }
    const [program, ...args] = command()
    const installed = await runBeside(program!, args, { cwd: project, env: server.env })
    expect(installed.status, installed.output).toBe(0)
    const use = "import { ones } from 'st-moe'; console.log(ones([3]).sum().item())"
    const env = { ...server.env, PREBUILDS_ONLY: '1' }
    const used = await runBeside(node, ['--input-type=module', '-e', use], { cwd: project, env })
    expect(used).toEqual({ status: 0, output: '3\n' })
  })
})
