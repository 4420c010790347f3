import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { runChild } from '../support/child.js'
import { emptyPlugin, emptyPluginBuilt, emulator, emulatorBuilt } from '../support/emulator.js'
import { temporary } from '../support/temporary.js'

// The errors if the CUDA backend cannot be used: of the plugin, the driver, the device or cuBLAS, on the emulator.

process.env.ST_MOE_CUDA_LIBRARY = emulator
const build = fileURLToPath(new URL('../../build/', import.meta.url))

/** What a child process reports with another plugin or environment. */
async function reported(env: Record<string, string>, device = 'cuda', cwd?: string) {
  const result = await runChild('device-report.mjs', [device], { env, cwd })
  expect(result.stderr).toBe('')
  expect(result.code).toBe(0)
  const report = JSON.parse(result.stdout)
  expect(report.cpu).toEqual([2, 4])
  expect(report.devices[0].available).toBe(true)
  expect(report.opened).toEqual(['cpu'])
  return report
}

describe('if it cannot be used, the error says why and the CPU works', () => {
  const expectAnswer = async (env: Record<string, string>, stage: string, reason: RegExp) => {
    const { devices: list, request } = await reported(env)
    expect(list[1]).toMatchObject({ device: 'cuda', available: false, stage })
    expect(list[1].reason).toMatch(reason)
    expect(request.code).toBe('BACKEND_UNAVAILABLE')
    expect(request.message).toContain(`${stage}: `)
    expect(request.message).toMatch(reason)
  }

  /** The list has the GPU, whose first use fails. */
  const expectFailure = async (env: Record<string, string>, reason: RegExp, code = 'BACKEND_UNAVAILABLE') => {
    const { devices: list, request } = await reported(env)
    expect(list[1]).toMatchObject({ device: 'cuda:0', available: true })
    expect(request).toMatchObject({ code, message: expect.stringMatching(reason) })
    expect(request.message).toMatch(/^\[tensor\] /)
  }

  test('no plugin', () => expectAnswer({ ST_MOE_CUDA_LIBRARY: '/nowhere/plugin.so' }, 'plugin', /nowhere/))

  test('a damaged plugin', async () => {
    const file = join(temporary(), 'damaged.so')
    writeFileSync(file, `\x7fELF${'x'.repeat(4000)}`)
    await expectAnswer({ ST_MOE_CUDA_LIBRARY: file }, 'plugin', /damaged\.so/)
  })

  const other = join(build, 'simt/libother_abi.so')
  test.skipIf(!existsSync(other))('a plugin of another build', () =>
    expectAnswer(
      { ST_MOE_CUDA_LIBRARY: other },
      'abi',
      /has ABI 00001267, this addon has ABI [0-9a-f]{8}: .*Install st-moe-cuda of the same version as st-moe, or in a clone run: npm run build:cuda$/,
    ),
  )

  test.skipIf(!emptyPluginBuilt)('the plugin of other devices', () =>
    expectAnswer({ ST_MOE_CUDA_LIBRARY: emptyPlugin }, 'plugin', /the plugin of 'empty': name it in ST_MOE_PLUGINS/),
  )

  test.skipIf(!emulatorBuilt)('no driver', () => expectAnswer({ SIMT_DRIVER: 'missing' }, 'driver', /no NVIDIA driver/))

  test.skipIf(!emulatorBuilt)('no GPU', () =>
    expectAnswer({ SIMT_DEVICES: '0', CUDA_VISIBLE_DEVICES: '7' }, 'device', /CUDA_VISIBLE_DEVICES is '7'/),
  )

  test.skipIf(!emulatorBuilt)('no cuBLAS', () =>
    expectAnswer({ ST_MOE_CUBLAS_LIBRARY: '/nowhere/libcublas.so' }, 'cublas', /ST_MOE_CUBLAS_LIBRARY.*nowhere/),
  )

  describe.skipIf(!existsSync(join(build, 'simt/cublas')))('cuBLAS that is found as a file is tried', () => {
    const folder = (kind: string) => join(build, 'simt/cublas', kind)
    const files = (kind: string, driver = 13000) => ({
      SIMT_CUBLAS: 'files',
      CUDA_PATH: folder(kind),
      SIMT_DRIVER: String(driver),
    })
    const file = (kind: string, version: number) => join(folder(kind), `lib64/libcublas.so.${version}`)

    test.each([
      ['create', /libcublas\.so\.13: cublasCreate gives CUBLAS_STATUS_NOT_INITIALIZED; /],
      ['gemm', /libcublas\.so\.13: a small GEMM gives CUBLAS_STATUS_NOT_SUPPORTED; /],
      ['wrong', /libcublas\.so\.13: the result of a small GEMM is wrong; /],
    ])('broken: %s', async (kind, reason) => {
      await expectFailure(files(kind), reason)
      const every = new RegExp(`${file(kind, 12)}: [^;]+; libcublas.so.13: [^;]+; ${file(kind, 13)}: [^;]+; looked in`)
      await expectFailure(files(kind, 12040), every)
      await expectFailure({ ST_MOE_CUBLAS_LIBRARY: file(kind, 13) }, /cublas: ST_MOE_CUBLAS_LIBRARY: [^;]+; $/)
    })

    test('no cuBLAS at all is known before a GPU is opened', async () => {
      const reason = /libcublas\.so\.13: this is not cuBLAS 12 or 13; /
      await expectAnswer(files('symbols'), 'cublas', reason)
      const { devices: list } = await reported(files('symbols'))
      for (const place of ['/usr/local/cuda{,-1[23]*}/lib64', '/.local/lib/python3*/{site,dist}-packages/nvidia'])
        expect(list[1].reason).toContain(place)
    })

    const wheel = (python: string, name = 'cublas') => `${python}/lib/python3.11/site-packages/nvidia/${name}/lib`
    test.each<[string, string, (folder: string) => Record<string, string>]>([
      ['CUDA_HOME', 'lib64', (folder) => ({ CUDA_HOME: folder })],
      ['a conda environment', 'lib', (folder) => ({ CONDA_PREFIX: folder })],
      ['the wheel of a conda environment', wheel('.', 'cu13'), (folder) => ({ CONDA_PREFIX: folder })],
      ['the active environment', wheel('.'), (folder) => ({ VIRTUAL_ENV: folder })],
      ['packages of the user', wheel('.local'), (folder) => ({ HOME: folder })],
      ['.venv of the working folder', wheel('.venv'), () => ({})],
      ['venv of the working folder', wheel('venv'), () => ({})],
    ])('is found in %s', async (_, below, env) => {
      const folder = temporary('st-moe [a]{b} ')
      mkdirSync(join(folder, below), { recursive: true })
      symlinkSync(file('good', 13), join(folder, below, 'libcublas.so.13'))
      const none = { CUDA_PATH: '', CUDA_HOME: '', CONDA_PREFIX: '', VIRTUAL_ENV: '', HOME: '/nowhere' }
      const { request } = await reported({ ...none, SIMT_CUBLAS: 'files', ...env(folder) }, 'cuda', folder)
      expect(request).toBe('ready')
    })

    test('by the version of the driver, and the next one if it does not work', async () => {
      const made = async (env: Record<string, string>) => {
        const log = join(temporary(), 'log')
        const { devices: list, request } = await reported({ ...env, FAKE_CUBLAS_LOG: log })
        expect(list[1]).toMatchObject({ device: 'cuda:0', available: true })
        expect(request).toBe('ready')
        return readFileSync(log, 'utf8').trim()
      }
      expect(await made(files('good'))).toBe('good 13')
      expect(await made(files('good', 13010))).toBe('good 13')
      expect(await made(files('good', 12090))).toBe('good 12')
      expect(await made({ ST_MOE_CUBLAS_LIBRARY: file('good', 12) })).toBe('good 12')
      expect(await made({ ST_MOE_CUBLAS_LIBRARY: file('lt', 13) })).toBe('lt 13') // with its libcublasLt
    })
  })

  test.skipIf(!emulatorBuilt)('of a driver that is too old both versions', () =>
    expectAnswer(
      { SIMT_DRIVER: '12020', SIMT_DRIVER_OLD: '1' },
      'driver',
      /the driver is CUDA 12\.2, this plugin is built with CUDA 13\.0, which needs driver 580 or newer$/,
    ),
  )

  test.skipIf(!emulatorBuilt)('a GPU of another process hides no other, and a listing opens none', async () => {
    const env = { SIMT_DEVICES: '8', SIMT_UNAVAILABLE: '0' }
    const { devices: list, request } = await reported(env, 'cuda:1')
    expect(list).toHaveLength(9)
    for (const gpu of list.slice(1))
      expect(gpu).toMatchObject({ available: true, variant: 'emulated GPU', totalBytes: 2 ** 32, driver: 'CUDA 13.0' })
    expect(request).toBe('ready')
    expect((await reported(env, 'cuda:0')).request.message).toMatch(/busy or unavailable/)
  })

  test.skipIf(!emulatorBuilt)('a GPU that the plugin has no code for', () =>
    expectFailure({ SIMT_CODE: '0' }, /no code for emulated GPU, whose compute capability is 9\.0\. Install/),
  )

  test.skipIf(!emulatorBuilt)('a virtual GPU without memory pools', async () => {
    const { devices: list, request } = await reported({ SIMT_POOLS: '0' })
    expect(list[1]).toMatchObject({
      available: false,
      stage: 'device',
      reason: expect.stringMatching(/no memory pools/),
    })
    expect(request.message).toMatch(/no memory pools/)
  })

  test.skipIf(!emulatorBuilt)('memory that the pool does not use is given back for cuBLAS and for code', async () => {
    expect((await reported({ SIMT_POOL: 'full' })).request).toBe('ready')
  })

  test.skipIf(!emulatorBuilt)('an old GPU, and a missing one', async () => {
    const old = await reported({ SIMT_CAPABILITY: '61' })
    expect(old.devices[1]).toMatchObject({ device: 'cuda:0', available: false, stage: 'device' })
    expect(old.request.message).toMatch(/compute capability 6\.1; 7\.5 or newer/)
    const { devices: list, request } = await reported({ SIMT_DEVICES: '2' }, 'cuda:2')
    expect(list.map((info: { device: string }) => info.device)).toEqual(['cpu', 'cuda:0', 'cuda:1'])
    expect(request).toMatchObject({ code: 'BACKEND_UNAVAILABLE' })
  })

  const real = join(build, 'Release/libst_moe_cuda.so')
  test.skipIf(!existsSync(real))('the real plugin loads and answers', async () => {
    const { devices: list } = await reported({ ST_MOE_CUDA_LIBRARY: real })
    expect(list[1].available || list[1].reason.length > 0).toBe(true)
    if (!list[1].available) expect(['driver', 'device', 'cublas']).toContain(list[1].stage)
  })
})
