import { cpSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { manifestsOf } from '../../scripts/manifests.mjs'
import { mpichFiles, mpichVersion } from '../../scripts/mpich.mjs'
import { mpichSystems } from '../../scripts/targets.mjs'
import { root } from '../support/blocks.js'
import { mpiFor } from '../support/mpi.js'
import { runProgram } from '../support/program.js'
import { temporary } from '../support/temporary.js'

/** The packages @st-moe/mpich-<system>. */

const system = `${process.platform}-${process.arch}`
const project = { name: 'st-moe', version: '1.2.3', scripts: {}, license: 'MIT', engines: { node: '>=20' } }

test('are optional peers of st-moe, for the systems of their wheels', () => {
  const { main, mpich } = manifestsOf(project, ['linux-x64-glibc'], [], Object.keys(mpichSystems))
  const names = Object.keys(mpichSystems).map((name) => `@st-moe/mpich-${name}`)
  expect(main.optionalDependencies).toEqual({ '@st-moe/linux-x64-glibc': '1.2.3' })
  expect(main.peerDependencies).toMatchObject(Object.fromEntries(names.map((name) => [name, '1.2.3'])))
  expect(main.peerDependenciesMeta).toMatchObject(Object.fromEntries(names.map((name) => [name, { optional: true }])))
  expect(main.dependencies).toBeUndefined()
  expect(mpich.map(({ name }) => name)).toEqual(names)
  expect(mpich[0]).toMatchObject({ version: '1.2.3', os: ['linux'], cpu: ['x64'], libc: ['glibc'] })
  expect(mpich[2]).toMatchObject({ os: ['darwin'], cpu: ['arm64'] })
  expect(manifestsOf(project, [], []).mpich).toEqual([])
})

test.runIf(system in mpichSystems)(
  'connect processes with a bare PATH, an empty home and no Python',
  async (context) => {
    mpiFor(context, 'mpich') // skips without PyPI
    const folder = temporary()
    const modules = join(folder, 'node_modules')
    const name = `@st-moe/mpich-${system}`
    for (const [from, to] of Object.entries(mpichFiles(system))) {
      mkdirSync(dirname(join(modules, name, to)), { recursive: true })
      cpSync(join(root, from), join(modules, name, to))
    }
    writeFileSync(join(modules, name, 'package.json'), JSON.stringify({ name, version: '1.2.3' }))
    for (const part of ['dist', 'package.json', 'build/Release', 'node_modules/node-gyp-build']) {
      const to = part.replace('node_modules/', '../')
      mkdirSync(dirname(join(modules, 'st-moe', to)), { recursive: true })
      if (part === 'dist') cpSync(join(root, part), join(modules, 'st-moe', to), { recursive: true })
      else if (part === 'package.json') cpSync(join(root, part), join(modules, 'st-moe', to))
      else symlinkSync(join(root, part), join(modules, 'st-moe', to))
    }
    const program = `
    import { initProcessGroup, processBackends } from 'st-moe'
    const group = initProcessGroup()
    group.barrier()
    const [{ library, version }] = processBackends()
    console.log(group.rank + 1, group.size, library, version)
    group.destroy()`
    writeFileSync(join(folder, 'program.mjs'), program)
    const { code, out, err } = await runProgram(
      [join(modules, 'st-moe/dist/cli.js'), 'launch', '-n', '2', process.execPath, 'program.mjs'],
      { cwd: folder, env: { PATH: '/nowhere', HOME: folder } },
    )
    expect({ code, err }).toEqual({ code: 0, err: '' })
    const lines = out.trimEnd().split('\n').sort()
    for (const rank of [0, 1])
      expect(lines[rank]).toMatch(
        new RegExp(
          `^\\[${rank}\\] ${rank + 1} 2 .*/node_modules/${name}/lib/libmpi_abi\\.\\S+ MPICH .*${mpichVersion}`,
        ),
      )
  },
)
