import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { manifestsOf } from '../../scripts/manifests.mjs'
import { distTag, faults, type Packed, readPackages } from '../../scripts/publish.mjs'
import { mpichSystems, plugins, targets } from '../../scripts/targets.mjs'
import { root } from '../support/blocks.js'
import { type PackageServer, runBeside, startPackageServer } from '../support/package-server.js'

const work = mkdtempSync(join(tmpdir(), 'st-moe-publish-'))
afterAll(() => rmSync(work, { recursive: true, force: true }))

/** A folder of tarballs as pack.mjs makes it, of packages with nothing in them. */
function pack(folder: string, version: string, text = ''): string {
  const names = ['st-moe', '@st-moe/linux-x64-glibc', 'st-moe-cuda']
  for (const name of names) {
    const own = join(work, 'staged', 'package')
    mkdirSync(own, { recursive: true })
    const optionalDependencies = name === 'st-moe' ? { '@st-moe/linux-x64-glibc': version } : {}
    writeFileSync(join(own, 'package.json'), JSON.stringify({ name, version, optionalDependencies, description: text }))
    mkdirSync(join(work, folder), { recursive: true })
    const file = join(work, folder, `${name.replace('@', '').replace('/', '-')}-${version}.tgz`)
    execFileSync('tar', ['-czf', file, '-C', join(work, 'staged'), 'package'])
  }
  return join(work, folder)
}

test('every manifest has the repository, and the system that it is for', () => {
  const project = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const repository = { type: 'git', url: 'git+ssh://example.invalid/st-moe.git' }
  const names = [targets, plugins, mpichSystems].map(Object.keys)
  const { main, addons, cuda, mpich } = manifestsOf({ ...project, repository }, names[0], names[1], names[2])
  const all = [main, ...addons, cuda!, ...mpich]
  expect(all).toHaveLength(13)
  for (const manifest of all) expect(manifest, manifest.name).toMatchObject({ repository, version: project.version })
  expect(cuda).toMatchObject({ os: ['linux'], cpu: ['x64', 'arm64'], libc: ['glibc'] })
  expect(addons.filter(({ libc }) => libc)).toHaveLength(4)
  expect(Object.keys(main.optionalDependencies as object)).toEqual(addons.map(({ name }) => name))
})

test.each([
  ['0.1.0', undefined, 'latest'],
  ['0.10.0', '0.9.3', 'latest'],
  ['0.2.0', '0.2.0', 'latest'],
  ['1.0.0', '1.0.0-rc.2', 'latest'],
  ['0.9.4', '0.10.0', 'release-0.9'],
  ['1.2.3', '1.2.4', 'release-1.2'],
  ['0.2.0-rc.1', '0.1.0', 'rc'],
  ['0.2.0-beta-2.1', undefined, 'beta'],
  ['0.2.0-0', '0.1.0', 'next'],
])('%s after %s has the dist-tag %s', (version, newest, tag) => {
  expect(distTag(version, newest)).toBe(tag)
})

describe('before a registry is asked', () => {
  const packages = () => readPackages(pack('right', '0.2.0'))
  const sumsOf = (all: Packed[]) => all.map(({ file, sha256 }) => `${sha256}  ${file.split('/').at(-1)}`).join('\n')

  test('complete packages of one version have no faults', () => {
    const all = packages()
    expect(all).toHaveLength(3)
    expect(all.at(-1)!.manifest.name).toBe('st-moe')
    expect(faults(all, { tag: 'v0.2.0', sums: `${sumsOf(all)}\n` })).toEqual([])
  })

  test('another tag, version or package is one', () => {
    const all = packages()
    expect(faults(all, { tag: 'v0.2.1' })).toEqual(['the tag is v0.2.1, the version 0.2.0'])
    const [first] = all
    const older = { ...first!, manifest: { ...first!.manifest, version: '0.1.0' } }
    expect(faults([older, ...all.slice(1)], {})).toEqual([`${first!.manifest.name} has version 0.1.0, not 0.2.0`])
    const without = all.filter(({ manifest }) => manifest.name !== '@st-moe/linux-x64-glibc')
    expect(faults(without, {})).toEqual(['there is no @st-moe/linux-x64-glibc, which st-moe needs'])
    expect(faults(all.slice(0, -1), {})[0]).toMatch(/^there is no st-moe:/)
  })

  test('so is a tarball with other bytes than were packed, one more, and one less', () => {
    const all = packages()
    const sums = sumsOf(all)
    const [first] = all
    expect(faults([{ ...first!, sha256: '0'.repeat(64) }, ...all.slice(1)], { sums })).toEqual([
      `${first!.file} is not what was packed`,
    ])
    expect(faults(all, { sums: sums.split('\n').slice(1).join('\n') })).toEqual([
      `${first!.file} is not what was packed`,
    ])
    expect(faults(all, { sums: `${sums}\n${'1'.repeat(64)}  more.tgz` })).toEqual(['more.tgz is missing'])
    expect(faults(all, { sums: '' })).toHaveLength(3)
  })

  test('provenance needs the repository in every manifest', () => {
    const all = packages()
    expect(faults(all, { provenance: true })).toHaveLength(3)
    const repository = { type: 'git', url: 'git+ssh://example.invalid/st-moe.git' }
    const named = all.map((one) => ({ ...one, manifest: { ...one.manifest, repository } }))
    expect(faults(named, { provenance: true })).toEqual([])
    expect(faults([all[0]!, ...named.slice(1)], { provenance: true })[0]).toMatch(
      /has no repository, which package.json/,
    )
  })
})

describe('with a registry', () => {
  let server: PackageServer
  beforeEach(async () => {
    server = await startPackageServer()
  })
  afterEach(() => server.close())
  const publish = (folder: string, env: NodeJS.ProcessEnv = {}, ...args: string[]) =>
    runBeside(process.execPath, ['scripts/publish.mjs', '--folder', folder, ...args], {
      cwd: root,
      env: { ...server.env, ...env },
    })

  test('a run that failed half way is finished by the next', async () => {
    const folder = pack('half', '0.1.0')
    const [first, second] = readPackages(folder).map(({ manifest }) => manifest.name)
    server.faults.set(second!, 'refuse')
    expect((await publish(folder)).status).not.toBe(0)
    expect(server.order).toEqual([first])
    server.faults.set(second!, 'lose') // stored, but npm fails
    expect((await publish(folder)).status).not.toBe(0)
    expect(server.order).toEqual([first, second])
    const { status, output } = await publish(folder)
    expect(status, output).toBe(0)
    expect(server.order).toEqual([first, second, 'st-moe'])
    expect(output).toContain(`${first}@0.1.0 is published already`)
    expect(server.packages.get('st-moe')!['dist-tags']).toEqual({ latest: '0.1.0' })
    expect((await publish(folder)).output).toContain('st-moe@0.1.0 is published already')
  })

  test('other bytes under a published version stop it before anything is published', async () => {
    server.packages.set('st-moe-cuda', {
      name: 'st-moe-cuda',
      'dist-tags': { latest: '0.1.0' },
      versions: {
        '0.1.0': { name: 'st-moe-cuda', version: '0.1.0', dist: { tarball: '', integrity: 'sha512-other' } },
      },
    })
    const { status, output } = await publish(pack('other', '0.1.0'))
    expect(status).toBe(1)
    expect(output).toMatch(/other bytes under this version of st-moe-cuda/)
    expect(server.order).toEqual([])
  })

  test('a fix of an older version is not the latest, and --check publishes nothing', async () => {
    const folder = pack('fix', '0.1.1')
    const versions = { '0.2.0': { name: 'st-moe', version: '0.2.0', dist: { tarball: '', integrity: '' } } }
    server.packages.set('st-moe', { name: 'st-moe', 'dist-tags': { latest: '0.2.0' }, versions })
    const { output } = await publish(folder, { GITHUB_EVENT_NAME: 'workflow_dispatch' }, '--check')
    expect(output.match(/would be published as release-0\.1/g)).toHaveLength(3)
    expect(server.order).toEqual([])
    const { status } = await publish(folder)
    expect(status).toBe(0)
    expect(server.packages.get('st-moe')!['dist-tags']).toEqual({ latest: '0.2.0', 'release-0.1': '0.1.1' })
  })

  test('a run started by hand publishes nothing, nor does one with other bytes', async () => {
    const folder = pack('hand', '0.1.0')
    const byHand = await publish(folder, { GITHUB_EVENT_NAME: 'workflow_dispatch' })
    expect(byHand).toMatchObject({ status: 1, output: expect.stringContaining('only a pushed tag publishes') })
    const swapped = await publish(folder, { SHA256SUMS: `${'0'.repeat(64)}  st-moe-0.1.0.tgz` })
    expect(swapped).toMatchObject({ status: 1, output: expect.stringContaining('is not what was packed') })
    expect(server.order).toEqual([])
  })
})

test('the workflow publishes only for a pushed tag, by this script, what `pack` has summed', () => {
  const workflow = readFileSync(join(root, '.github/workflows/release.yml'), 'utf8')
  const job = workflow.slice(workflow.indexOf('\n  publish:'))
  expect(job).toContain("if: github.event_name == 'push' && startsWith(github.ref, 'refs/tags/v')")
  expect(job).toMatch(/SHA256SUMS: \$\{\{ needs\.pack\.outputs\.sums \}\}/)
  expect(job).toMatch(/node scripts\/publish\.mjs --version "\$GITHUB_REF_NAME" --provenance/)
  expect(workflow.match(/npm publish/g)).toBeNull()
})
