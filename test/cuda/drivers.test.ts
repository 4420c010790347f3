import { execFileSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { addonFile } from '../../lib/doctor/index.js'
import { runChild } from '../support/child.js'
import { emulator, emulatorBuilt } from '../support/emulator.js'

/**
 * Two CUDA plugins beside the addon, of CUDA 13 and of CUDA 12: the version of the driver decides which is used. Copies of
 * the emulator in place of both, and, where they have been compiled, the real ones with a driver that has no GPU.
 */

const files = ['libst_moe_cuda.so', 'libst_moe_cuda12.so'] as const
const compiled = files.map((file) => fileURLToPath(new URL(`../../build/Release/${file}`, import.meta.url)))
let folder: string
let release: string

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'st-moe-drivers-'))
  release = join(folder, 'build/Release')
  mkdirSync(release, { recursive: true })
  symlinkSync(addonFile(), join(release, 'st_moe.node'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** What a process reports with these plugins beside the addon. */
async function reported(plugins: readonly string[], env: Record<string, string>) {
  for (const file of files) rmSync(join(release, file), { force: true })
  for (const plugin of plugins) copyFileSync(plugin, join(release, plugin.endsWith('12.so') ? files[1] : files[0]))
  const all = { ST_MOE_PREBUILD: folder, ST_MOE_CUDA_LIBRARY: '', ...env }
  const { stdout, stderr, code } = await runChild('device-report.mjs', ['cuda'], { env: all })
  expect({ stderr, code }).toEqual({ stderr: '', code: 0 })
  const { devices, request } = JSON.parse(stdout)
  return { gpu: devices[1], request }
}

describe.skipIf(!emulatorBuilt)('on the emulator', () => {
  let pair: string[]
  beforeAll(() => {
    pair = files.map((file) => join(folder, file))
    for (const file of pair) copyFileSync(emulator, file)
  })
  const driver = (version: number) => ({ SIMT_DRIVER: String(version), SIMT_DRIVER_OLD: '1' })

  test.each([
    ['CUDA 13', 13020, 0],
    ['CUDA 12', 12040, 1],
  ])('a driver of %s runs a plugin', async (_, version, used) => {
    const { gpu, request } = await reported(pair, driver(version))
    expect(gpu).toMatchObject({ device: 'cuda:0', available: true })
    expect(request).toBe('ready')
    const alone = await reported([pair[1 - used]], driver(version))
    if (used === 1) expect(alone.gpu.reason).toMatch(/which needs driver 580 or newer$/)
    else expect(alone.request).toBe('ready')
  })

  test('a driver before CUDA 12 runs none, and the error names the oldest that does', async () => {
    const { gpu, request } = await reported(pair, driver(11080))
    const text = /the driver is CUDA 11\.8, this plugin is built with CUDA 12\.9, which needs driver 525 or newer/
    expect(gpu).toMatchObject({ available: false, stage: 'driver', reason: expect.stringMatching(text) })
    expect(request).toMatchObject({ code: 'BACKEND_UNAVAILABLE', message: expect.stringMatching(text) })
  })

  test('a damaged plugin is reported, whichever it is', async () => {
    const damaged = join(folder, 'damaged12.so')
    writeFileSync(damaged, 'not a library')
    expect((await reported([pair[0], damaged], driver(12040))).gpu.stage).toBe('plugin')
    expect((await reported([pair[0], damaged], driver(13000))).request).toBe('ready')
  })
})

/** The functions of libcuda that the runtime calls before it counts GPUs: there are none. */
const standIn = `#include <string.h>
static int version(int* number) { *number = VERSION; return 0; }
static int no_gpu(void) { return 100; }
int cuDriverGetVersion(int* number) { return version(number); }
int cuInit(unsigned flags) { return no_gpu(); }
int cuGetProcAddress_v2(const char* name, void** function, int v, unsigned long long flags, void* status) {
  *function = strcmp(name, "cuDriverGetVersion") == 0 ? (void*)version : strcmp(name, "cuGetProcAddress") == 0 ? (void*)cuGetProcAddress_v2 : (void*)no_gpu;
  return 0;
}
int cuGetProcAddress(const char* name, void** function, int v, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, v, flags, 0);
}
`

describe.skipIf(!compiled.every((file) => existsSync(file)))('the compiled plugins', () => {
  async function withDriver(version: number) {
    const place = mkdtempSync(join(folder, 'driver-'))
    const source = join(place, 'driver.c')
    writeFileSync(source, standIn)
    execFileSync('cc', ['-w', '-shared', '-fPIC', `-DVERSION=${version}`, '-o', join(place, 'libcuda.so.1'), source])
    return (await reported(compiled, { LD_LIBRARY_PATH: place })).gpu
  }

  test.each([13000, 12000])('start with a driver of version %i', async (version) => {
    expect(await withDriver(version)).toMatchObject({ stage: 'device', reason: 'the driver sees no GPU' })
  })

  test('refuse one before CUDA 12', async () => {
    expect(await withDriver(11080)).toMatchObject({
      stage: 'driver',
      reason: expect.stringMatching(/driver 525 or newer/),
    })
  })
})
