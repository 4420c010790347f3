import { delimiter, join } from 'node:path'
import { expect, test } from 'vitest'
import {
  captureStep,
  devices,
  Generator,
  getDefaultDevice,
  Linear,
  MoE,
  memory,
  ones,
  ops,
  randn,
  SGD,
  scope,
  setDefaultDevice,
  tensor,
  trainStepAsync,
} from '../../lib/index.js'
import { native } from '../../lib/runtime/native.js'
import { root } from '../support/blocks.js'
import { runChild } from '../support/child.js'
import { emptyPlugin, emptyPluginBuilt, remotePlugin } from '../support/emulator.js'
import { runProgram } from '../support/program.js'

// Plugins of devices with names of their own: test/native/empty_plugin.cc has memory and no op. The memory of `remote` is
// no memory of the host.

process.env.ST_MOE_PLUGINS = [emptyPlugin, remotePlugin].join(delimiter)
const device = 'empty:0'
const unsupported = (op: string) =>
  expect.objectContaining({ code: 'UNSUPPORTED', message: expect.stringMatching(`^\\[\\w+\\] empty has no op ${op}$`) })

test.skipIf(!emptyPluginBuilt)('it is listed under its own name, after the devices of CUDA', () => {
  const list = devices()
  const variant = 'a device without ops'
  const remote = { device: 'remote:0', available: true, variant }
  expect(list.slice(-2)).toEqual([{ device, available: true, variant }, remote])
  expect(list.filter((info) => info.device.startsWith('empty'))).toHaveLength(1)
  expect(list[0].device).toBe('cpu')
})

test.skipIf(!emptyPluginBuilt)('it has tensors of any dtype, which are copied and read', async () => {
  const before = memory().devices[device]?.bytes ?? 0
  await scope(async () => {
    const x = tensor([1, 2, 3], null, { device: 'empty:0' })
    expect(x.device).toBe(device)
    expect([...x.dataSync()]).toEqual([1, 2, 3])
    expect([...(await x.to('cpu').dataAsync())]).toEqual([1, 2, 3])
    expect(tensor([4]).to('empty:0').item()).toBe(4)
    expect(x.reshape([3, 1]).shape).toEqual([3, 1])
  })
  expect(memory().devices[device].bytes).toBe(before)
})

test.skipIf(!emptyPluginBuilt)('every op is refused, by its name, and nothing is left of the call', () => {
  scope(() => {
    const x = tensor([1, 2, 3, 4], [2, 2], { device })
    const before = memory().devices[device]
    const refused: [string, () => unknown][] = [
      ['binary', () => x.add(x)],
      ['full', () => ones([2], { device })],
      ['random', () => randn([2], { device, generator: new Generator(1) })],
      ['unary', () => x.exp()],
      ['convert', () => x.to('f64')],
      ['strided_copy', () => x.transpose(0, 1)],
      ['reduce', () => x.sum()],
      ['matmul', () => x.matmul(x)],
      ['softmax', () => ops.softmax(x)],
    ]
    for (const [op, call] of refused) expect(call, op).toThrow(unsupported(op))
    expect(memory().devices[device]).toEqual({ ...before, peakBytes: expect.any(Number) })
  })
})

test.skipIf(!emptyPluginBuilt)('a step that is captured or asynchronous is refused when the op is called', async () => {
  using x = tensor([1, 2], null, { device })
  expect(() => captureStep(() => x.exp())).toThrow(unsupported('unary'))
  using layer = new Linear(2, 2)
  const weight = layer.weight.clone()
  const optimizer = new SGD(layer.parameters(), { lr: 1 })
  const missing: [string, () => unknown][] = [
    ['unary', () => x.exp()],
    ['binary', () => x.add(x)], // its call is written by hand
  ]
  for (const [op, call] of missing) {
    const step = trainStepAsync(() => {
      layer
        .forward(tensor([1, 2], [1, 2]))
        .sum()
        .backward()
      optimizer.step()
      call()
    })
    await expect(step).rejects.toMatchObject(unsupported(op))
  }
  expect([...layer.weight.dataSync()]).toEqual([...weight.dataSync()])
  weight.dispose()
})

test.skipIf(!emptyPluginBuilt)(
  'only a backend that can capture, or computes in memory of the host, captures steps',
  () => {
    using x = tensor([1, 2], null, { device: 'remote:0' })
    const step = () => captureStep(() => x.sum())
    expect(step).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))
    native.captureBegin(native.openDevice(emptyPlugin, 0))
    native.captureEnd(false)
    expect(() => native.captureBegin(native.openDevice(remotePlugin, 0))).toThrow(/remote cannot capture a step$/)
  },
)

test.skipIf(!emptyPluginBuilt)('values are read from another device, too', async () => {
  using x = tensor([1, 2], null, { device: 'remote:0' })
  expect([...(await x.dataAsync())]).toEqual([1, 2])
  expect(() => x.exp()).toThrow(/remote has no op unary$/)
  expect([...x.to('empty:0').dataSync()]).toEqual([1, 2])
})

test.skipIf(!emptyPluginBuilt)('a layer says which op is missing, and the CPU works', () => {
  setDefaultDevice('empty:0')
  try {
    expect(getDefaultDevice()).toBe(device)
    expect(() => new MoE({ dim: 4, numExperts: 2 })).toThrow(/empty has no op/)
  } finally {
    setDefaultDevice('cpu')
  }
  scope(() => expect(new MoE({ dim: 4, numExperts: 2 }).forward(ones([1, 3, 4])).outputs.shape).toEqual([1, 3, 4]))
})

test.skipIf(!emptyPluginBuilt)('names of devices', () => {
  expect(() => tensor([1], null, { device: 'empty:1' })).toThrow(/device 'empty:1' cannot be used: device: /)
  expect(() => tensor([1], null, { device: 'full:0' })).toThrow(
    "device must be 'cpu', 'cuda' or 'cuda:<number>', 'empty' or 'empty:<number>', 'remote' or 'remote:<number>', got \"full:0\"",
  )
  using moved = tensor([1]).to('empty' as 'empty:0')
  expect(moved.device).toBe(device)
})

test.skipIf(!emptyPluginBuilt)('what a backend says of itself decides', () => {
  const info = native.deviceInfo(native.openDevice(emptyPlugin, 0))
  expect(info).toEqual({ name: 'empty', variant: 'a device without ops', hostMemory: true, prefersSlots: false })
  expect(native.deviceInfo(0)).toMatchObject({ name: 'cpu', hostMemory: true, prefersSlots: false })
})

test.skipIf(!emptyPluginBuilt)('a file that is no plugin is listed with the reason; the others work', async () => {
  const list = async (plugins: string) => {
    const { stdout } = await runChild('device-report.mjs', ['cpu'], { env: { ST_MOE_PLUGINS: plugins } })
    return JSON.parse(stdout).devices
  }
  const [, , missing, empty] = await list(`/nowhere/libnpu.so:${emptyPlugin}`)
  expect(missing).toMatchObject({ device: 'npu', available: false, stage: 'plugin' })
  expect(missing.reason).toBe('/nowhere/libnpu.so: there is no such file. ST_MOE_PLUGINS names this file')
  expect(empty).toMatchObject({ device, available: true })
})

test.runIf(emptyPluginBuilt)('the program takes the name of a plugin for a device', async () => {
  const sizes = '--dim 8 --experts 2 --batch 1 --tokens 8 --repetitions 1'.split(' ')
  const bench = (device: string) => runProgram([join(root, 'dist/cli.js'), 'bench', '--device', device, ...sizes])
  expect(await bench('empty')).toMatchObject({ code: 1, err: expect.stringContaining('empty has no op') })
  const refused = { code: 2, err: expect.stringContaining('--device must be cpu, cuda or cuda:N or empty') }
  expect(await bench('emptier')).toMatchObject(refused)
  expect(await bench('empty:x')).toMatchObject(refused)
})
