import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { nodes, pathWith, runtimesOf } from '../../scripts/install-matrix-tools.mjs'
import { systemOf, targets } from '../../scripts/targets.mjs'

// That the packages are on the registry is asked by scripts/check-tools.mjs, in a long lane.

test.each(Object.keys(targets))('%s has versions of Node, all of them supported, and other runtimes', (target) => {
  const { platform, arch } = systemOf(target)
  const { versions } = nodes[`${platform}-${arch}`]!
  for (const version of versions) {
    const [major, minor] = version.split('.').map(Number)
    expect(major! > 20 || minor! >= 19, version).toBe(true)
  }
  const runtimes = runtimesOf(`${platform}-${arch}`)
  expect(Object.keys(runtimes)).toEqual(expect.arrayContaining(['node-22', 'node-26', 'bun', 'deno']))
  for (const { spec, file } of Object.values(runtimes)) {
    expect(spec).toMatch(/^npm:(@\w+\/)?[\w-]+@\d+\.\d+\.\d+$/)
    expect(file.endsWith('.exe')).toBe(platform === 'win32')
  }
})

test('a PATH of the matrix has its node and basic programs, and no others', () => {
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-path-'))
  try {
    const PATH = pathWith(process.execPath, folder)
    const run = (program: string) => execFileSync('sh', ['-c', program], { env: { PATH }, encoding: 'utf8' }).trim()
    expect(run('node --version && ls /dev/null')).toBe(`${process.version}\n/dev/null`)
    expect(readdirSync(PATH)).not.toContain('which')
    expect(readdirSync(pathWith(null, folder))).not.toContain('node')
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('on Windows it is the folder of the node, and the system', () => {
  const windows = { platform: 'win32', SystemRoot: 'C:\\Windows' }
  expect(pathWith('D:\\a b\\bin\\node.exe', 'unused', windows)).toBe('D:\\a b\\bin;C:\\Windows\\System32')
  expect(pathWith(null, 'unused', windows)).toBe('C:\\Windows\\System32')
})
